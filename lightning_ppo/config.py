"""Typed settings: dataclasses with the universal defaults, YAML files and `key=value` overrides merged over them."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_ppo.class_path import as_path
from lightning_ppo.errors import ConfigError
from lightning_ppo.schedules import Schedule

ACTIVATIONS = ("tanh", "relu", "elu", "silu", "gelu")
DISTRIBUTIONS = ("gaussian", "state_gaussian", "tanh_gaussian", "beta", "gsde")
CORES = ("lstm", "gru")
ENCODERS = ("impala",)
BACKENDS = ("auto", "vector", "sync", "async", "envpool")
ON_ERROR = ("stop", "restart")
OBJECTIVES = ("clip", "policy_gradient", "surrogate", "kl_penalty", "adaptive_kl", "trpo")
SCHEDULED = (
    *("clip_range", "clip_range_high", "value_clip_range", "kl_coefficient"),
    *("entropy_coefficient", "value_coefficient", "std_decay", "learning_rate"),
)
OBJECTS = ("kwargs", "wrappers", "core", "encoder", "network")
"""Fields that take Python objects from Python, as they are."""

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass
class AtariConfig:
    """How Atari games (`env.id=ALE/...`) are shown and learnt from, whatever the backend.

    Scores are always those of whole games, unclipped, in training and evaluation alike.
    """

    noop_max: int = 30
    """Bound on the random number of idle frames at the start of a game."""
    fire_reset: bool = True
    """Press FIRE for one frame at the start of a game that has it."""
    frame_skip: int = 4
    """Frames per step; an observation shows the maximum of the last two."""
    screen_size: int = 84
    """Height and width to which the grey picture is scaled."""
    frame_stack: int = 4
    """Pictures per observation, the latest last."""
    repeat_action_probability: float = 0.0
    """Sticky actions: how likely a frame repeats the action before it, 0.25 in Machado et al. 2018."""
    full_action_space: bool = False
    """All 18 actions instead of those that the game uses."""
    max_frames: int = 108_000
    """Frames after which a game is cut off, half an hour of play."""
    clip_rewards: bool = True
    """Learn from the sign of rewards."""
    terminate_on_life_loss: bool = True
    """Learn from a lost life as from the end of the game, which goes on."""

    def __post_init__(self) -> None:
        for name, least in (("noop_max", 0), ("frame_skip", 1), ("frame_stack", 1), ("max_frames", 1)):
            value = getattr(self, name)
            _require(value >= least, f"env.atari.{name}: must be at least {least}, got {value}")
        _require(self.screen_size >= 36, f"env.atari.screen_size: must be at least 36, got {self.screen_size}")
        probability = self.repeat_action_probability
        _require(
            0.0 <= probability <= 1.0, f"env.atari.repeat_action_probability: must lie in [0, 1], got {probability:g}"
        )


@dataclass
class EnvConfig:
    """Which environment, and how many copies of it step together."""

    id: str = "CartPole-v1"
    """A Gymnasium id, or an import path `package.module:EnvClass` of an environment or vector environment."""
    num_envs: int = 64
    """N, copies per rank, at least 1."""
    backend: str = "auto"
    """`auto` (native vector entry point, else sync), `vector`, `sync`, `async` or `envpool`."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment's constructor; with `envpool`, settings of the task."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated, in place of the registered time limit; null keeps that."""
    wrappers: list[Any] = field(default_factory=list)
    """Wrappers of each copy, the innermost first: a class path, or `{class_path: ..., init_args: {...}}`."""
    scores: str = "innermost"
    """Whose rewards the returns are sums of that are reported: `innermost`, the environment within all wrappers, or
    `outermost`, what is learnt from."""
    timeout: float | None = None
    """Seconds that a step or reset of one copy may take (`sync` and `async`); null waits for ever."""
    on_error: str = "stop"
    """When a copy raises, hangs or dies: `stop` saves and ends the run, `restart` replaces it."""
    max_restarts: int = 10
    """How often each copy is replaced under `restart` before its next failure stops the run."""
    stagger: bool = True
    """Cut the first training episode of each copy off at another time, where there is a time limit, so that the copies
    do not move through their episodes in step; a line says where that cannot be."""
    action_mask: str = "auto"
    """Where legal actions are told: `auto` (info["action_mask"], if it is there), `none`, `info`, `observation:KEY`
    (an entry of a Dict observation, which the networks then do not see) or `method:NAME` of the environment."""
    atari: AtariConfig = field(default_factory=AtariConfig)
    large_state: float = 50.0
    """Megabytes of the environments' state in a checkpoint, on one rank, above which a line says what holds most."""

    def __post_init__(self) -> None:
        self.wrappers = [as_path(wrapper) for wrapper in self.wrappers]
        _require(self.num_envs >= 1, f"env.num_envs: must be at least 1, got {self.num_envs}")
        _require(
            self.timeout is None or (self.timeout > 0.0 and math.isfinite(self.timeout)),
            f"env.timeout: must be a positive number or null, got {self.timeout}",
        )
        _require(
            self.max_episode_steps is None or self.max_episode_steps >= 1,
            f"env.max_episode_steps: must be at least 1 or null, got {self.max_episode_steps}",
        )
        _require(
            self.scores in ("innermost", "outermost"),
            f"env.scores: expected innermost or outermost, got {self.scores!r}",
        )
        _require(self.on_error in ON_ERROR, f"env.on_error: expected stop or restart, got {self.on_error!r}")
        _require(self.large_state >= 0.0, f"env.large_state: must not be negative, got {self.large_state}")
        _require(self.max_restarts >= 0, f"env.max_restarts: must not be negative, got {self.max_restarts}")
        _require(
            self.backend in BACKENDS,
            f"env.backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}",
        )
        kind, _, name = self.action_mask.partition(":")
        _require(
            self.action_mask in ("auto", "none", "info") or (kind in ("observation", "method") and name != ""),
            f"env.action_mask: expected auto, none, info, observation:KEY or method:NAME, got {self.action_mask!r}",
        )


@dataclass
class RolloutConfig:
    """How much is collected per iteration, and how returns are estimated."""

    num_steps: int = 64
    """T, steps per environment and iteration."""
    gamma: float = 0.995
    """Discount factor in [0, 1]."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation in [0, 1]; 0 is the TD error, 1 the Monte Carlo return."""
    overlap: bool = False
    """Collect each rollout in another process while the one before is learnt from, with a policy one update older."""
    processes: int = 1
    """Processes that collect at the same time, each with its share of the environments."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "processes"):
            _require(getattr(self, name) >= 1, f"rollout.{name}: must be at least 1, got {getattr(self, name)}")
        _require(0.0 <= self.gamma <= 1.0, f"rollout.gamma: must lie in [0, 1], got {self.gamma:g}")
        _require(0.0 <= self.gae_lambda <= 1.0, f"rollout.gae_lambda: must lie in [0, 1], got {self.gae_lambda:g}")


@dataclass
class TrustRegionConfig:
    """The step of the objective `trpo` (TRPO paper, appendix C)."""

    max_kl: float = 0.01
    """Delta, bound on the mean KL divergence of a step, in nats."""
    damping: float = 0.1
    """Multiple of the identity added to the Fisher matrix."""
    cg_iterations: int = 10
    """Iterations of conjugate gradients, each one Fisher-vector product over the whole rollout."""
    line_search_steps: int = 10
    """Step lengths that are tried, each half the one before, until the step is rejected."""

    def __post_init__(self) -> None:
        for name in ("max_kl", "damping"):
            value = getattr(self, name)
            _require(
                value > 0.0 and math.isfinite(value), f"update.trust_region.{name}: must be positive, got {value:g}"
            )
        for name in ("cg_iterations", "line_search_steps"):
            value = getattr(self, name)
            _require(value >= 1, f"update.trust_region.{name}: must be at least 1, got {value}")


@dataclass
class UpdateConfig:
    """What one PPO iteration does with a rollout. Coefficients take a number or a schedule."""

    epochs: int | None = None
    """Passes over the rollout, those of `trpo` for the critic alone; null takes 10, or 1 for `policy_gradient`."""
    minibatch_size: int = 128
    """Transitions per optimizer step and rank; must divide num_steps x num_envs."""
    sequence_length: int | None = None
    """L, consecutive steps through which a recurrent policy is trained, a divisor of num_steps and minibatch_size; null
    takes the largest that leaves four sequences in a minibatch."""
    clip_range: Any = 0.2
    """Epsilon of the clipped surrogate (PPO paper, equation 7), below 1, usually 0.1 to 0.3."""
    clip_range_high: Any = None
    """How far the ratio may rise above 1; null takes `clip_range`, which then bounds both sides."""
    kl_coefficient: Any = 1.0
    """Beta of the objective `kl_penalty`, and where that of `adaptive_kl` starts (equation 8)."""
    kl_target: float = 0.01
    """KL divergence that the objective `adaptive_kl` aims at (section 4), in nats."""
    trust_region: TrustRegionConfig = field(default_factory=TrustRegionConfig)
    value_clip_range: Any = None
    """Clip range of the value function as in OpenAI baselines; null turns it off."""
    entropy_coefficient: Any = 0.0
    """Weight of the entropy bonus (c2 of equation 9), usually 0 to 0.02."""
    value_coefficient: Any = 0.5
    """Weight of the value loss (c1 of equation 9)."""
    std_decay: Any = field(
        default_factory=lambda: {"kind": "piecewise", "points": [[0.0, 0.0], [0.75, 0.0], [1.0, 0.5]]}
    )
    """Log units by which the standard deviation of Gaussian actions is lowered besides what is learnt, a schedule over
    the training budget; 0 leaves it to learning. Nothing is lowered with the objective `trpo`."""
    max_grad_norm: float | None = 0.5
    """Bound on the global gradient norm; null turns clipping off."""
    target_kl: float | None = None
    """End the iteration after an epoch whose KL to the behaviour policy exceeds this, in nats; null never does."""
    recompute_advantages: bool = False
    """Estimate advantages and value targets anew before each epoch, with the critic as it then is."""
    normalize_advantages: bool = True
    """Shift and scale the advantages of a rollout (over all ranks) to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        _require(self.epochs is None or self.epochs >= 1, f"update.epochs: must be at least 1, got {self.epochs}")
        _require(self.kl_target > 0.0, f"update.kl_target: must be positive, got {self.kl_target}")
        _require(self.minibatch_size >= 1, f"update.minibatch_size: must be at least 1, got {self.minibatch_size}")
        _require(
            self.max_grad_norm is None or (self.max_grad_norm > 0.0 and math.isfinite(self.max_grad_norm)),
            f"update.max_grad_norm: must be a positive number or null, got {self.max_grad_norm}",
        )
        _require(
            self.target_kl is None or self.target_kl > 0.0,
            f"update.target_kl: must be a positive number or null, got {self.target_kl}",
        )
        self.schedules()

    def schedules(self) -> dict[str, Schedule]:
        """Return the scheduled coefficients by name; those that may be null only where they are set."""
        names = ["clip_range", "kl_coefficient", "entropy_coefficient", "value_coefficient", "std_decay"]
        names += [name for name in ("clip_range_high", "value_clip_range") if getattr(self, name) is not None]
        schedules = {name: Schedule.parse(getattr(self, name), f"update.{name}") for name in names}
        _require(
            max(schedules["clip_range"].values) < 1.0,
            f"update.clip_range: a ratio is never below 0, so it must be less than 1, got {self.clip_range}; "
            "clip_range_high may be larger",
        )
        return schedules


@dataclass
class OptimizerConfig:
    """Adam and its learning rate."""

    learning_rate: Any = field(
        default_factory=lambda: {
            "kind": "adaptive_kl",
            "start": 3e-4,
            "target_kl": 0.02,
            "minimum": 1e-5,
            "maximum": 3e-4,
            "cooldown": 0.5,
        }
    )
    """Step size: a number or a schedule; `adaptive_kl` steers it towards a KL of target_kl per iteration.

    With the objective `trpo` it is the critic's, and `adaptive_kl` leaves it at its start."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of Adam's moments."""
    epsilon: float = 1e-5
    """Adam's epsilon; 1e-5 as in OpenAI baselines."""

    def __post_init__(self) -> None:
        self.schedule()
        _require(self.epsilon > 0.0, f"optimizer.epsilon: must be positive, got {self.epsilon:g}")
        _require(
            len(self.betas) == 2 and all(0.0 <= beta < 1.0 for beta in self.betas),
            f"optimizer.betas: expected two numbers in [0, 1), got {list(self.betas)}",
        )

    def schedule(self) -> Schedule:
        """Return the learning rate as a schedule."""
        return Schedule.parse(self.learning_rate, "optimizer.learning_rate", allow_adaptive=True)


@dataclass
class PolicyConfig:
    """The networks of actor and critic."""

    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])
    """Units of each hidden layer."""
    activation: str = "tanh"
    """`tanh`, `relu`, `elu`, `silu` or `gelu`."""
    shared_trunk: bool = False
    """One trunk with two heads instead of two networks."""
    dropout: float = 0.0
    """Share of the hidden units left out at random in each pass of an update, in [0, 1); acting uses all units."""
    distribution: str = "gaussian"
    """Of Box actions: `gaussian` (free standard deviation), `state_gaussian`, `tanh_gaussian`, `beta` or `gsde`."""
    log_std_init: float = -0.5
    """Initial log standard deviation of Gaussian actions, in units of the half action range."""
    core: Any = None
    """Memory after the hidden layers: null, `lstm`, `gru`, or a class path of your own."""
    core_size: int = 64
    """Hidden units of an LSTM or GRU."""
    encoder: Any = None
    """What turns observations into features: null (images through the Nature CNN), `impala` (images through the
    residual network of IMPALA), or a class path of your own."""
    network: Any = None
    """Class path of a whole actor-critic instead of the built-in one."""
    critic_observation_keys: list[str] | None = None
    """Entries of a Dict observation that only the critic sees."""

    def __post_init__(self) -> None:
        self.core, self.encoder, self.network = map(as_path, (self.core, self.encoder, self.network))
        _require(
            self.activation in ACTIVATIONS,
            f"policy.activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}",
        )
        _require(0.0 <= self.dropout < 1.0, f"policy.dropout: must lie in [0, 1), got {self.dropout:g}")
        _require(
            self.distribution in DISTRIBUTIONS,
            f"policy.distribution: expected one of {', '.join(DISTRIBUTIONS)}, got {self.distribution!r}",
        )
        _require(
            not isinstance(self.core, str) or self.core in CORES or "." in self.core,
            f"policy.core: expected null, {', '.join(CORES)} or a class path, got {self.core!r}",
        )
        _require(
            not isinstance(self.encoder, str) or self.encoder in ENCODERS or "." in self.encoder,
            f"policy.encoder: expected null, {', '.join(ENCODERS)} or a class path, got {self.encoder!r}",
        )
        _require(self.core_size >= 1, f"policy.core_size: must be at least 1, got {self.core_size}")
        _require(
            not (self.critic_observation_keys and (self.shared_trunk or self.network)),
            "policy.critic_observation_keys: needs a critic of its own; set policy.shared_trunk=false and no network",
        )
        for name in ("core", "encoder"):
            _require(
                self.network is None or getattr(self, name) is None,
                f"policy.{name}: a network of your own brings its own; set policy.{name} or policy.network to null",
            )
        _require(math.isfinite(self.log_std_init), f"policy.log_std_init: must be a number, got {self.log_std_init}")
        _require(
            all(size >= 1 for size in self.hidden_sizes),
            f"policy.hidden_sizes: every layer needs at least 1 unit, got {list(self.hidden_sizes)}",
        )


@dataclass
class NormalizeConfig:
    """Running statistics that make the scale of observations and rewards irrelevant."""

    observations: bool = True
    """Shift and scale observations to mean 0 and variance 1."""
    rewards: bool = True
    """Divide rewards by the standard deviation of the discounted return."""
    observation_clip: float = 10.0
    """Bound on normalised observations."""
    reward_clip: float = 10.0
    """Bound on scaled rewards."""
    epsilon: float = 1e-8
    """Added to variances before the square root."""

    def __post_init__(self) -> None:
        for name in ("observation_clip", "reward_clip", "epsilon"):
            _require(getattr(self, name) > 0.0, f"normalize.{name}: must be positive, got {getattr(self, name):g}")


@dataclass
class EvaluationConfig:
    """How the agent is evaluated after each epoch and at the end."""

    episodes: int = 20
    """Episodes per evaluation during training; 0 turns it off."""
    final_episodes: int = 100
    """Episodes of the evaluation after training; 0 turns it off."""
    every_n_epochs: int = 1
    """Epochs between evaluations."""
    num_envs: int = 8
    """Copies of the environment that play side by side."""
    deterministic: bool = True
    """Play the mode of the action distribution instead of sampling."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 0), ("final_episodes", 0), ("every_n_epochs", 1), ("num_envs", 1)):
            value = getattr(self, name)
            _require(value >= least, f"evaluation.{name}: must be at least {least}, got {value}")


@dataclass
class CheckpointConfig:
    """What is kept under `run_dir/checkpoints`."""

    every_env_steps: int | None = None
    """Environment steps after which last.ckpt is written again, at the end of an epoch; null writes it at each."""
    keep: int = 2
    """Versions kept of each file: last.ckpt and, before it, last-1.ckpt, which is used where last.ckpt is damaged."""
    save_best: bool = True
    """Keep best.ckpt, the agent with the highest evaluation return."""

    def __post_init__(self) -> None:
        _require(
            self.every_env_steps is None or self.every_env_steps >= 1,
            f"checkpoint.every_env_steps: must be at least 1 or null, got {self.every_env_steps}",
        )
        _require(self.keep >= 1, f"checkpoint.keep: must be at least 1, got {self.keep}")


@dataclass
class Config:
    """Everything `train.py` reads."""

    seed: int = 1
    """Seeds weights, environments and sampling."""
    total_env_steps: int = 1_000_000
    """Training budget in environment steps over all ranks; never exceeded."""
    run_dir: str | None = None
    """Where everything is written; default runs/<env id>/<timestamp>."""
    resume: str | None = None
    """`last` or the path of a checkpoint goes on with a run; `auto` goes on if run_dir has one, else starts."""
    compile: bool = False
    """Compile the minibatch update with torch.compile."""
    debug: bool = False
    """Print full tracebacks."""
    objective: str = "clip"
    """The policy objective."""
    loss_terms: list[Any] = field(default_factory=list)
    """Losses added to it: a class path, or `{class_path: ..., init_args: {...}, weight: a number or a schedule}`."""
    rollouts_per_epoch: int = 5
    """Iterations per Lightning epoch, after which evaluation and checkpoints happen."""
    env: EnvConfig = field(default_factory=EnvConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to `pytorch_lightning.Trainer` as it is."""
    callbacks: list[Any] = field(default_factory=list)
    """Extra callbacks: a class path, or `{class_path: ..., init_args: {...}}`."""
    loggers: list[Any] = field(default_factory=list)
    """Loggers besides CSV and TensorBoard: `wandb`, `mlflow`, or a class path, in the same form."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, f"seed: must lie in 0..2**32 - 1, got {self.seed}")
        _require(self.total_env_steps >= 1, f"total_env_steps: must be at least 1, got {self.total_env_steps}")
        _require(self.rollouts_per_epoch >= 1, f"rollouts_per_epoch: must be at least 1, got {self.rollouts_per_epoch}")
        resolve_epochs(self.objective, self.update)
        check_rollout_size(self.rollout.num_steps, self.env.num_envs, self.update)


def resolve_epochs(objective: str | type, update: UpdateConfig) -> int:
    """Return the passes over a rollout under an objective.

    Raises:
        ConfigError: If the objective is unknown, or has no ratio that would allow more than one pass.
    """
    if isinstance(objective, str) and objective not in OBJECTIVES and "." not in objective:
        near = nearest(objective, OBJECTIVES)
        raise ConfigError(
            f"objective: expected a class path or one of {', '.join(OBJECTIVES)}, got {objective!r}; "
            f"did you mean {near}?"
        )
    if objective == "policy_gradient" and (update.epochs or 1) > 1:
        raise ConfigError(
            f"update.epochs: {update.epochs} passes need a ratio of new to old policy, which policy_gradient has not; "
            "set it to 1, or objective=clip"
        )
    return update.epochs or (1 if objective == "policy_gradient" else 10)


def resolve_sequence_length(num_steps: int, update: UpdateConfig, recurrent: bool) -> int:
    """Return the length of the sequences in which a policy learns from rollouts of T steps, 1 without recurrence.

    Raises:
        ConfigError: If the length asked for does not divide T and the minibatch size, or nothing needs sequences.
    """
    if not recurrent:
        _require(
            update.sequence_length is None,
            "update.sequence_length: only a recurrent policy learns in sequences; set policy.core, or remove it",
        )
        return 1
    if update.sequence_length is None:
        common = math.gcd(num_steps, update.minibatch_size)
        fitting = [d for d in range(1, common + 1) if common % d == 0 and 4 * d <= update.minibatch_size]
        return max(fitting, default=1)
    for name, size in (("rollout.num_steps", num_steps), ("update.minibatch_size", update.minibatch_size)):
        if update.sequence_length < 1 or size % update.sequence_length:
            raise ConfigError(
                f"update.sequence_length: {update.sequence_length} does not divide {name}={size}; "
                f"{math.gcd(num_steps, update.minibatch_size)} is the largest that fits"
            )
    return update.sequence_length


def check_rollout_size(num_steps: int, num_envs: int, update: UpdateConfig) -> None:
    """Raise ConfigError unless a rollout of T x N transitions divides into minibatches without remainder."""
    size = num_steps * num_envs
    if size % update.minibatch_size:
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - update.minibatch_size))
        raise ConfigError(
            f"update.minibatch_size: {update.minibatch_size} does not divide the rollout of "
            f"{num_steps} steps x {num_envs} envs = {size} transitions; the nearest size that does is {nearest}"
        )
    if size < 2 and update.normalize_advantages:
        raise ConfigError(
            "update.normalize_advantages: a single transition has no standard deviation; "
            "set it to false or raise rollout.num_steps or env.num_envs"
        )


def as_section(section: type[T], value: T | Mapping[str, Any] | None, key: str) -> T:
    """Return a settings dataclass from itself, a mapping of its fields, or None for the defaults.

    Raises:
        ConfigError: If a field is unknown or has the wrong type or value.
    """
    if value is None:
        return section()
    if isinstance(value, section):
        return value
    settings = value if isinstance(value, Mapping) else to_container(value)
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{key}: expected a mapping of settings, got {value!r}")
    objects = {f.name: settings[f.name] for f in fields(cast(Any, section)) if f.name in OBJECTS and f.name in settings}
    numbers = {name: _plain_number(setting) for name, setting in settings.items() if name not in objects}
    try:
        given = _literal(numbers)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}.{error.full_key}: expected plain data: {_one_line(error)}") from None
    made = _to_object(_merge(OmegaConf.structured(section), given, section, f"{key}."))
    if not isinstance(objects.get("kwargs", {}), Mapping):
        raise ConfigError(f"{key}.kwargs: expected a mapping, got {objects['kwargs']!r}")
    if not isinstance(objects.get("wrappers", []), list | tuple):
        raise ConfigError(f"{key}.wrappers: expected a list, got {objects['wrappers']!r}")
    return replace(made, **{name: _copied(setting) for name, setting in objects.items()})


def _plain_number(value: Any) -> Any:
    """Return a number or list of numbers in place of NumPy's and torch's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _copied(value: Any) -> Any:
    """Return dicts and lists anew, whatever else is in them as it is."""
    if isinstance(value, Container):
        return OmegaConf.to_container(value)
    if isinstance(value, dict | Mapping):
        return {name: _copied(child) for name, child in value.items()}
    return [_copied(child) for child in value] if type(value) is list else value


def _literal(settings: Mapping[str, Any]) -> DictConfig:
    """Return settings for merging, in which text stays as it is, even if it looks like an interpolation."""

    def escape(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        if isinstance(value, dict):
            return {name: escape(child) for name, child in value.items()}
        return [escape(child) for child in value] if isinstance(value, list) else value

    return OmegaConf.create(escape(to_container(settings)))


def to_container(value: Any) -> Any:
    """Return settings (dataclasses, schedules, mappings, sequences, scalars) as plain dicts, lists and scalars."""
    if isinstance(value, Schedule):
        return value.to_container()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_container(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_container(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_container(v) for v in value]
    return value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def load(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults, YAML files in order, and `key=value` overrides; later ones win.

    Raises:
        ConfigError: Naming the key, what is wrong, and the nearest valid key.
    """
    return _load_over(OmegaConf.structured(Config), files, overrides)


def _load_over(merged: Any, files: Sequence[str | Path], overrides: Sequence[str]) -> Config:
    for file in files:
        merged = _merge(merged, _read_yaml(Path(file)), Config, "")
    for override in overrides:
        merged = _merge(merged, _read_override(override), Config, "")
    return _to_object(merged)


def _read_override(override: str) -> DictConfig:
    key, separator, _ = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r}: expected key=value or the path of a .yaml file")
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:
        raise ConfigError(f"{key}: cannot read the value as YAML: {_one_line(error)}") from None


def to_yaml(config: Config) -> str:
    """Return resolved settings as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_container(config)))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the valid name that looks most like `name`."""
    return difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)[0]


def peek(files: Sequence[str | Path], overrides: Sequence[str], key: str) -> Any:
    """Return the value of one top-level setting before anything else is read or checked."""
    value = None
    for source in (*(_read_yaml(Path(file)) for file in files), *(_read_override(o) for o in overrides)):
        value = source.get(key, value)
    return value


def given_keys(files: Sequence[str | Path], overrides: Sequence[str]) -> set[str]:
    """Return the dotted names of the settings that files and overrides set."""
    sources = [*(_read_yaml(Path(file)) for file in files), *(_read_override(override) for override in overrides)]
    return {key for source in sources for key in flat(cast(dict, OmegaConf.to_container(source)))}


def load_over(settings: Mapping[str, Any], files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Config:
    """Return settings saved by `to_container`, with files and overrides merged over them."""
    merged = _merge(OmegaConf.structured(Config), _literal(settings), Config, "")
    return _load_over(merged, files, overrides)


def _read_yaml(path: Path) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        present = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; did you mean {nearest(str(path), present)}?" if present else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except Exception as error:
        raise ConfigError(f"{path}: not a readable YAML file: {_one_line(error)}") from None
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of settings at the top level")
    return content


def _merge(base: Any, update: Any, section: type, prefix: str) -> Any:
    unknown = _first_unknown_key(OmegaConf.to_container(update, resolve=False), section, "")
    if unknown is not None:
        near = nearest(unknown, [*_valid_keys(section, ""), *(f.name for f in fields(section))])
        raise ConfigError(f"{prefix}{unknown}: unknown setting; did you mean {prefix}{near}?")
    for key in _valid_keys(section, ""):
        if key.rpartition(".")[2] not in SCHEDULED:
            continue
        new = OmegaConf.select(update, key, throw_on_resolution_failure=False)
        if isinstance(new, DictConfig) and "kind" in new and isinstance(OmegaConf.select(base, key), DictConfig):
            # a schedule of its own kind replaces the former one instead of mixing their fields
            base = OmegaConf.merge(base)
            OmegaConf.update(base, key, None, merge=False)
    try:
        return OmegaConf.merge(base, update)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{prefix}{error.full_key}: {_one_line(error)}") from None


def _to_object(merged: Any) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"{error.full_key}: {_one_line(error)}") from None


def _section_type(section: type, name: str) -> type | None:
    for f in fields(section):
        if f.name == name and f.default_factory is not MISSING and is_dataclass(f.default_factory):
            return f.default_factory
    return None


def _valid_keys(section: type, prefix: str) -> list[str]:
    keys = []
    for f in fields(section):
        child = _section_type(section, f.name)
        keys += _valid_keys(child, f"{prefix}{f.name}.") if child else [f"{prefix}{f.name}"]
    return keys


def _first_unknown_key(content: Any, section: type, prefix: str) -> str | None:
    names = {f.name for f in fields(section)}
    for name, value in content.items():
        if name not in names:
            return f"{prefix}{name}"
        child = _section_type(section, name)
        if child and not isinstance(value, dict):
            raise ConfigError(f"{prefix}{name}: expected a mapping of settings, got {value!r}")
        if child:
            unknown = _first_unknown_key(value, child, f"{prefix}{name}.")
            if unknown:
                return unknown
    return None


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
