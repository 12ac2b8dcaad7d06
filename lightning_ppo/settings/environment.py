"""Settings of environments and of their evaluation."""

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_ppo.settings.class_path import as_path
from lightning_ppo.support.env_maker import EnvMaker
from lightning_ppo.support.errors import require

BACKENDS = ("auto", "vector", "sync", "async", "envpool")


ON_ERROR = ("stop", "restart")


@dataclass
class AtariConfig:
    """The protocol of Atari games (`env.id=ALE/...`), the same on every backend.

    Scores are always those of whole games, unclipped, in training and evaluation alike.
    """

    noop_max: int = 30
    """Bound on the random number of idle frames at the start of a game."""
    fire_reset: bool = True
    """Press FIRE for one frame at the start of a game that has it."""
    frame_skip: int = 4
    """Frames per step; an observation shows the maximum of the last two."""
    screen_size: int = 84
    """Height and width of the scaled grey image."""
    frame_stack: int = 4
    """Images per observation, the latest last."""
    repeat_action_probability: float = 0.0
    """Sticky actions: how likely a frame repeats the action before it, 0.25 in Machado et al. 2018."""
    full_action_space: bool = False
    """All 18 actions instead of those that the game uses."""
    max_frames: int = 108_000
    """Frames after which a game is cut off, half an hour of play."""
    clip_rewards: bool = True
    """Learn from the sign of rewards."""
    terminate_on_life_loss: bool = True
    """Learn from a lost life as from the end of an episode; the game continues."""

    def __post_init__(self) -> None:
        for name, least in (("noop_max", 0), ("frame_skip", 1), ("frame_stack", 1), ("max_frames", 1)):
            value = getattr(self, name)
            require(value >= least, f"env.atari.{name}: must be at least {least}, got {value}")
        require(self.screen_size >= 36, f"env.atari.screen_size: must be at least 36, got {self.screen_size}")
        probability = self.repeat_action_probability
        require(
            0.0 <= probability <= 1.0, f"env.atari.repeat_action_probability: must lie in [0, 1], got {probability:g}"
        )


@dataclass
class EnvConfig:
    """The environment, and how its copies are built and stepped."""

    id: str = "CartPole-v1"
    """A Gymnasium id, or an import path `package.module:EnvClass` of an environment or vector environment; from Python
    also the class, or a function that makes the environment."""
    num_envs: int = 64
    """N, copies per rank, at least 1."""
    backend: str = "auto"
    """`auto` (native vector entry point, else sync), `vector`, `sync`, `async` or `envpool`."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment's constructor; with `envpool`, settings of the task."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; null keeps the registered time limit."""
    wrappers: list[Any] = field(default_factory=list)
    """Wrappers of each copy, the innermost first: a class path, or `{class_path: ..., init_args: {...}}`."""
    scores: str = "innermost"
    """The rewards that reported returns are sums of: `innermost`, those of the environment inside all wrappers, or
    `outermost`, those that the agent learns from."""
    timeout: float | None = None
    """Seconds that a step or reset of one copy may take (`sync` and `async`); null waits for ever."""
    on_error: str = "stop"
    """When a copy raises, hangs or dies: `stop` saves and ends the run, `restart` replaces it."""
    max_restarts: int = 10
    """Replacements of each copy under `restart`, after which a failure stops the run."""
    stagger: bool = True
    """Truncate the first training episode of each copy after a random share of the time limit, so that the copies do
    not move through their episodes in step; a line says so if that is not possible."""
    action_mask: str = "auto"
    """Source of the masks of legal actions: `auto` (info["action_mask"], if it is there), `none`, `info`,
    `observation:KEY` (an entry of a Dict observation, hidden from the networks) or `method:NAME` of the environment."""
    log_info: Any = field(default_factory=list)
    """Entries of `info` whose means are logged, per step and per episode, such as `[reward_dist, distance]`; entries of
    nested dicts have dotted names. `auto` takes all floating-point numbers of the first step, at most 32. `is_success`
    needs no mention: the share of episodes that reach their goal is always logged."""
    atari: AtariConfig = field(default_factory=AtariConfig)
    large_state: float = 50.0
    """Megabytes of the environments' state in a checkpoint, on one rank, above which a line names the largest part."""

    def __post_init__(self) -> None:
        if callable(self.id):
            self.id = EnvMaker(self.id)
        self.wrappers = [as_path(wrapper) for wrapper in self.wrappers]
        if isinstance(self.log_info, str) and self.log_info != "auto":
            self.log_info = [self.log_info]
        require(
            self.log_info == "auto"
            or (isinstance(self.log_info, list | tuple) and all(isinstance(name, str) for name in self.log_info)),
            f"env.log_info: expected auto or a list of names, got {self.log_info!r}",
        )
        require(self.num_envs >= 1, f"env.num_envs: must be at least 1, got {self.num_envs}")
        require(
            self.timeout is None or (self.timeout > 0.0 and math.isfinite(self.timeout)),
            f"env.timeout: must be a positive number or null, got {self.timeout}",
        )
        require(
            self.max_episode_steps is None or self.max_episode_steps >= 1,
            f"env.max_episode_steps: must be at least 1 or null, got {self.max_episode_steps}",
        )
        require(
            self.scores in ("innermost", "outermost"),
            f"env.scores: expected innermost or outermost, got {self.scores!r}",
        )
        require(self.on_error in ON_ERROR, f"env.on_error: expected stop or restart, got {self.on_error!r}")
        require(self.large_state >= 0.0, f"env.large_state: must not be negative, got {self.large_state}")
        require(self.max_restarts >= 0, f"env.max_restarts: must not be negative, got {self.max_restarts}")
        require(
            self.backend in BACKENDS,
            f"env.backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}",
        )
        kind, _, name = self.action_mask.partition(":")
        require(
            self.action_mask in ("auto", "none", "info") or (kind in ("observation", "method") and name != ""),
            f"env.action_mask: expected auto, none, info, observation:KEY or method:NAME, got {self.action_mask!r}",
        )


@dataclass
class EvaluationConfig:
    """How the agent is evaluated during training and at the end."""

    episodes: int = 20
    """Episodes per evaluation during training; 0 turns it off."""
    final_episodes: int = 100
    """Episodes of the evaluation after training; 0 turns it off."""
    every_n_epochs: int | None = None
    """Epochs between evaluations; null evaluates after the first epoch, after the last, and between them as often as
    about a tenth of the time allows."""
    num_envs: int = 10
    """Copies of the environment that play side by side; with a divisor of the episodes all of them have work."""
    deterministic: bool = True
    """Play the mode of the action distribution instead of sampling."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 0), ("final_episodes", 0), ("num_envs", 1)):
            value = getattr(self, name)
            require(value >= least, f"evaluation.{name}: must be at least {least}, got {value}")
        every = self.every_n_epochs
        require(every is None or every >= 1, f"evaluation.every_n_epochs: must be at least 1 or null, got {every}")
