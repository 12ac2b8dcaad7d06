"""Step vector environments that speak torch: observations, rewards and episode ends as tensors, on any device.

Nothing here looks at what a tensor holds, so that a step never waits for the device; `docs/device_environments.md`
says what is expected of such an environment.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from lightning_ppo.envs.infos import AUTO, FINAL, SUCCESS, TensorInfoReader
from lightning_ppo.envs.scores import SCORE, tensor_scores
from lightning_ppo.envs.stagger import set_clocks
from lightning_ppo.envs.state import set_env_state
from lightning_ppo.envs.stepper import Stepper, call, seed_argument
from lightning_ppo.envs.vector_stepper import VectorStepper
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from lightning_ppo.support.tree import tree_leaves, tree_map

_log = logging.getLogger(__name__)

FINAL_OBSERVATIONS = ("final_obs", "final_observation")
"""Where infos keep the last observations of ended episodes: Gymnasium's name, and its former one."""


def make_stepper(
    env: VectorEnv, action_mask: str, seeds: list[int], on_host: bool = False, log_info: Sequence[str] | str = ()
) -> Stepper:
    """Start all episodes of a vector environment anew, and return what steps it from there.

    Args:
        env: Speaks NumPy or torch; which of them shows in its first observations.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.
        seeds: One seed per copy.
        on_host: Step it with NumPy arrays even if it speaks torch.
        log_info: Entries of infos that are logged, see `EnvConfig.log_info`.
    """
    observations, infos = call(env, "reset", 0, seed=seed_argument(env, seeds))
    set_clocks(env, seeds)
    first = next((leaf for leaf in tree_leaves(observations) if isinstance(leaf, Tensor)), None)
    if first is not None and on_host:
        env = HostView(env, first.device, log_info)
        observations, infos = env.on_host(observations, infos)
    kind = VectorStepper if first is None or on_host else TensorStepper
    stepper = kind(env, action_mask, log_info)
    stepper.begin(observations, infos)
    stepper.seeds = seeds
    return stepper


class TensorStepper(Stepper):
    """Steps a vector environment that returns tensors and takes them.

    After `step`, `observations` is what the policy acts on next; it may be the environment's own memory.

    Attributes:
        device: The environment's.
        final_observations: (N, ...), last observations of episodes that ended, as the environment gives them (rows of
            other environments hold anything); None where this step brought none.

    Raises:
        EnvironmentFault: If the autoreset mode is unknown or needs to know on the host which episodes ended.
        ConfigError: If there can be no action masks.
    """

    takes_tensors = True

    def __init__(self, env: VectorEnv, action_mask: str = "auto", log_info: Sequence[str] | str = ()) -> None:
        super().__init__(env, action_mask, TensorInfoReader(log_info, env.num_envs))
        if self.mode is AutoresetMode.DISABLED:
            raise EnvironmentFault(
                f"{type(env).__name__} declares DISABLED autoreset; an environment on a device must reset its copies "
                "itself (SAME_STEP or NEXT_STEP)"
            )
        self.any_filler = self.mode is AutoresetMode.NEXT_STEP
        self.final_observations: Any = None
        self._warned = False
        if self.source.kind == "method":
            raise ConfigError(f"env.action_mask: {action_mask} calls single copies; this environment has none to call")
        self.action_masks: Tensor | None = None
        self.device: Any = None
        self.starts: Any = None
        self.filler: Any = None

    def begin(self, observations: Any, infos: dict[str, Any]) -> None:
        """Take in what a reset returned."""
        self.device = tree_leaves(observations)[0].device
        self.observations = self._read(observations, infos)
        self.starts = torch.ones(self.env.num_envs, dtype=torch.bool, device=self.device)
        self.filler = torch.zeros_like(self.starts)
        self._ended = torch.zeros_like(self.starts)

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Step with the environment's actions (N, ...); return rewards, terminations and truncations, each (N,)."""
        there = tree_map(lambda x: x.to(self.device), actions)
        observations, rewards, terminations, truncations, infos = self._call("step", there)
        self.num_steps += 1
        for name, values in (("rewards", rewards), ("terminations", terminations), ("truncations", truncations)):
            if values.shape != self._ended.shape or (name != "rewards" and values.dtype != torch.bool):
                raise EnvironmentFault(
                    f"the environment returned {name} of shape {tuple(values.shape)} and type {values.dtype} at step "
                    f"{self.num_steps}, expected {tuple(self._ended.shape)}{'' if name == 'rewards' else ' and bool'}"
                )
        self.lesson = None
        scores = tensor_scores(rewards, infos)
        if scores is not None:
            self.lesson, rewards = (rewards, terminations), scores
        ended = terminations | truncations
        self.successes = self.infos.successes(infos, ended)
        if self.infos.reads:
            self.info_values = self.infos.values(infos, ended)
        if self.any_filler:
            self.filler, self._ended = self._ended, ended
            self.starts = self.filler
        else:
            self._ended = self.starts = ended
            final = next((infos[key] for key in FINAL_OBSERVATIONS if key in infos), None)
            self.final_observations = None if final is None else self.source.strip(final)
        self.observations = self._read(observations, infos)
        return rewards, terminations, truncations

    def warn_of_missing_finals(self) -> None:
        """Say once that values of truncated episodes are not those of their final observations."""
        if not self._warned:
            _log.warning(
                "%s gives no infos['final_obs']: truncated episodes bootstrap from the last observation acted on",
                type(self.env).__name__,
            )
        self._warned = True

    def _read(self, observations: Any, infos: dict[str, Any]) -> Any:
        """Check structure, take in the action masks, and return the observations without them."""
        self._check_structure(observations)
        source = self.source
        if source.told(infos, self.num_steps):
            masks = infos.get("action_mask") if source.kind == "info" else observations[source.key]
            expected = (self.env.num_envs, sum(source.sizes))
            if masks is None or tuple(masks.shape) != expected:
                found = "no mask" if masks is None else f"masks of shape {tuple(masks.shape)}"
                raise EnvironmentFault(f"the environment gave {found} at step {self.num_steps}, expected {expected}")
            self.action_masks = masks.bool()
        return source.strip(observations)

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Go on where `state` was taken, or return why that cannot be done."""
        reason = set_env_state(self.env, state["env"])
        if reason:
            return reason
        self.observations, self.action_masks, self.starts, self._ended = tree_map(
            lambda x: None if x is None else x.to(self.device, copy=True),
            (state["observations"], state["action_masks"], state["starts"], state["ended"]),
        )
        self.num_steps = state["num_steps"]
        return ""


class HostView(VectorWrapper):
    """A vector environment of tensors, seen as one of NumPy arrays: for evaluation and prediction.

    Args:
        env: Returns tensors.
        device: Where it takes its actions.
        log_info: Entries of infos that are logged.
    """

    def __init__(self, env: VectorEnv, device: torch.device, log_info: Sequence[str] | str = ()) -> None:
        super().__init__(env)
        self.device = device
        heads = [] if log_info == AUTO else [name.partition(".")[0] for name in log_info]
        read = {"action_mask", SCORE, SUCCESS, FINAL, *log_info, *heads}
        self._keys = None if log_info == AUTO else read | {f"_{name}" for name in read}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all episodes anew."""
        return self.on_host(*self.env.reset(seed=seed, options=options))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step with NumPy actions (N, ...)."""
        there = tree_map(lambda x: torch.from_numpy(np.asarray(x)).to(self.device), actions)
        observations, *ends, infos = self.env.step(there)
        # who plays on the host does not look at final observations, but a stepper expects some
        final = next((infos[key] for key in FINAL_OBSERVATIONS if key in infos), observations)
        seen, infos = self.on_host(observations, infos)
        return seen, *to_host(tuple(ends)), infos | {"final_obs": to_host(final)}

    def on_host(self, observations: Any, infos: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return observations and infos as NumPy arrays; of the infos only what somebody reads."""
        keys = infos.keys() if self._keys is None else self._keys & infos.keys()
        return to_host(observations), {key: to_host(infos[key]) for key in keys}


def to_host(tree: Any) -> Any:
    """Return nested dicts and tuples with NumPy arrays in place of tensors."""
    return tree_map(lambda x: x.detach().cpu().numpy() if isinstance(x, Tensor) else x, tree)
