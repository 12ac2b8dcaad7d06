"""Batched simulators that step all their copies with torch tensors, as Gymnasium vector environments."""

import inspect
import logging
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lightning_ppo.support.errors import ConfigError, EnvironmentFault

_log = logging.getLogger(__name__)

TRUNCATIONS = (
    "truncations",
    "truncation",
    "truncated",
    "TimeLimit.truncated",
    "time_outs",
    "time_out",
    "timeouts",
    "timeout",
)
"""Where infos say which episodes were cut off, by the names of brax, rsl_rl and others.

Where several are there, the first is taken: what brax calls `time_out` is a task's own, and may be a termination.
"""


class TensorVectorEnv(VectorEnv):
    """A simulator of N copies that resets them itself, as a vector environment that declares how.

    Its `step` returns observations, rewards, terminations, truncations and infos; or, as rsl_rl has it, observations,
    rewards, dones and infos, of which `infos["time_outs"]` says which episodes were cut off rather than ended; the
    other names in TRUNCATIONS are known, too. Its `reset` returns observations, with infos or without, and gets a seed
    if it takes one. Observations may be any mapping, episode ends of any type.

    Args:
        env: Has `num_envs`, `reset` and `step`.
        single_observation_space: Of one copy; None takes the simulator's own.
        single_action_space: Of one copy; None takes the simulator's own.
        autoreset_mode: How it starts the next episode of a copy: SAME_STEP with the step that ends one, NEXT_STEP with
            the following one.
        truncation_key: Name of the truncations in the infos; None takes the first of TRUNCATIONS that is there.

    Raises:
        ConfigError: If neither the simulator nor the arguments name the spaces.
    """

    def __init__(
        self,
        env: Any,
        single_observation_space: gymnasium.Space | None = None,
        single_action_space: gymnasium.Space | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
        truncation_key: str | None = None,
    ) -> None:
        self.env = env
        self._truncation_keys = TRUNCATIONS if truncation_key is None else (truncation_key,)
        self._warned = False
        self.num_envs = int(env.num_envs)
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.single_observation_space = single_observation_space or self._space("single_observation_space")
        self.single_action_space = single_action_space or self._space("single_action_space")
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _space(self, name: str) -> gymnasium.Space:
        space = getattr(self.env, name, None)
        if not isinstance(space, gymnasium.Space):
            raise ConfigError(f"TensorVectorEnv: {type(self.env).__name__} has no {name}; give one as an argument")
        return space

    @property
    def device(self) -> str:
        """The device that the simulator names."""
        return str(getattr(self.env, "device", "cpu"))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all episodes anew."""
        takes = inspect.signature(self.env.reset).parameters
        returned = self.env.reset(seed=seed) if "seed" in takes else self.env.reset()
        observations, infos = returned if isinstance(returned, tuple) else (returned, {})
        return _plain(observations), infos

    def step(self, actions: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all copies with actions (N, ...)."""
        observations, rewards, *ends, infos = self.env.step(actions)
        if len(ends) == 1:
            dones = ends[0].bool()
            cut = self._truncations(infos, dones)
            ends = [dones & ~cut, dones & cut]
        final = {name: _plain(infos[name]) for name in ("final_obs", "final_observation") if name in infos}
        return _plain(observations), rewards, ends[0].bool(), ends[1].bool(), {**infos, **final}

    def _truncations(self, infos: dict[str, Any], dones: Tensor) -> Tensor:
        keys = [key for key in self._truncation_keys if key in infos]
        if len(keys) > 1 and not self._warned:
            self._warned = True
            _log.warning(
                "%s has %s in its infos: %s is taken for the truncations; TensorVectorEnv(truncation_key=...) takes "
                "another",
                type(self.env).__name__,
                " and ".join(keys),
                keys[0],
            )
        if keys:
            key = keys[0]
            cut = torch.as_tensor(infos[key], device=dones.device).bool()
            if cut.shape != dones.shape:
                raise EnvironmentFault(
                    f"{type(self.env).__name__} returned infos[{key!r}] of shape {tuple(cut.shape)}, expected "
                    f"{tuple(dones.shape)}"
                )
            return cut
        if self._truncation_keys is not TRUNCATIONS:
            raise EnvironmentFault(
                f"TensorVectorEnv: truncation_key={self._truncation_keys[0]!r} is not in the infos of "
                f"{type(self.env).__name__}, which are {', '.join(map(str, infos)) or 'empty'}"
            )
        if not self._warned:
            _log.warning(
                "%s names no truncations in its infos (%s): every end of an episode counts as a termination; where it "
                "has a time limit, give TensorVectorEnv its truncation_key",
                type(self.env).__name__,
                ", ".join(map(str, infos)) or "they are empty",
            )
            self._warned = True
        return torch.zeros_like(dones)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the simulator, if it can be."""
        if hasattr(self.env, "close"):
            self.env.close()


def _plain(observations: Any) -> Any:
    """Return nested mappings of tensors as dicts."""
    if not isinstance(observations, Tensor) and hasattr(observations, "items"):
        return {key: _plain(value) for key, value in observations.items()}
    return observations
