"""Step a vector environment of NumPy arrays, whatever its autoreset mode."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from lightning_ppo.envs.declared import NOTICE
from lightning_ppo.envs.infos import InfoReader
from lightning_ppo.envs.masks import ActionMasks
from lightning_ppo.envs.processes import FAULT, REPLACED
from lightning_ppo.envs.scores import scores_of
from lightning_ppo.envs.state import set_env_state
from lightning_ppo.envs.stepper import Stepper
from lightning_ppo.envs.training_signal import REWARDS, TERMINATIONS
from lightning_ppo.support.distributed import rank
from lightning_ppo.support.errors import EnvironmentFault
from lightning_ppo.support.notices import warn_once
from lightning_ppo.support.tree import tree_map

_log = logging.getLogger(__name__)

_FIRST_STEPS = 3
"""Steps, the reset counted, after each of which values are checked; later they are with whole rollouts."""


class VectorStepper(Stepper):
    """Steps a vector environment of NumPy arrays, whatever its autoreset mode.

    Attributes:
        final_observations: By the index of the environment.

    Args:
        env: The vector environment.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.
        log_info: Entries of infos that are logged, see `EnvConfig.log_info`.

    Raises:
        EnvironmentFault: If the environment's autoreset mode is unknown, or it raises or returns a wrong shape.
        ConfigError: If there can be no action masks.
    """

    def __init__(self, env: VectorEnv, action_mask: str = "auto", log_info: Sequence[str] | str = ()) -> None:
        super().__init__(env, action_mask, InfoReader(log_info, env.num_envs))
        self.final_observations: dict[int, Any] = {}
        self.starts = np.ones(env.num_envs, dtype=np.bool_)
        self._every_row = np.ones(env.num_envs, dtype=np.bool_)
        self._masks = ActionMasks(self.source)
        self.filler = np.zeros(env.num_envs, dtype=np.bool_)
        self._ended, self._any_ended = np.zeros(env.num_envs, dtype=np.bool_), False

    def begin(self, observations: Any, infos: dict[str, Any]) -> None:
        """Take in what a reset returned."""
        self._replaced(infos)
        self._set_observations(observations, infos, self._every_row)
        self.starts = np.ones(self.env.num_envs, dtype=np.bool_)
        self.filler, self.any_filler = np.zeros(self.env.num_envs, dtype=np.bool_), False
        self._ended, self._any_ended = np.zeros(self.env.num_envs, dtype=np.bool_), False

    @property
    def action_masks(self) -> np.ndarray | None:
        """Choices (N, M) that are legal now, or None."""
        return self._masks.current

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step with the environment's actions (N, ...); return scores, terminations and truncations, each (N,)."""
        observations, rewards, terminations, truncations, infos = self._call("step", actions)
        self.num_steps += 1
        self.lesson = (infos[REWARDS], infos[TERMINATIONS]) if REWARDS in infos else None
        if self.final_observations:
            self.final_observations = {}
        for name, values in (("rewards", rewards), ("terminations", terminations), ("truncations", truncations)):
            if np.shape(values) != self._ended.shape or (name != "rewards" and values.dtype != np.bool_):
                raise EnvironmentFault(
                    f"the environment returned {name} of shape {np.shape(values)} and type "
                    f"{getattr(values, 'dtype', type(values).__name__)} at step {self.num_steps}, expected "
                    f"{self._ended.shape}{'' if name == 'rewards' else ' and bool'}"
                )
        scores = scores_of(rewards, infos)
        if scores is not None:
            self.lesson = self.lesson or (np.array(rewards), terminations.copy())
            rewards = scores
        ended = terminations | truncations
        any_ended = bool(ended.any())
        self.successes = self.infos.successes(infos, ended) if any_ended else None
        if self.infos.reads:
            self.info_values = self.infos.values(infos, ended)
        if self.mode is AutoresetMode.NEXT_STEP:
            self.any_filler = self._any_ended
            self.filler, self._ended, self._any_ended = self._ended, ended, any_ended
            self.starts = self.filler
        else:
            if self.any_filler or FAULT in infos:
                self.filler, self.any_filler = self._replaced(infos), FAULT in infos
            self.starts = ended | self.filler
            if any_ended:
                if self.mode is AutoresetMode.DISABLED:  # the reset may write into what the step has returned
                    rewards, terminations, truncations = rewards.copy(), terminations.copy(), truncations.copy()
                observations, infos = self._final(observations, ended, infos)
        self._set_observations(observations, infos, self._fresh_masks(ended) if any_ended else self._every_row)
        return rewards, terminations, truncations

    def _final(self, observations: Any, ended: np.ndarray, infos: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Keep the final observations of ended episodes; return observations and infos after the reset."""
        indices = [int(i) for i in np.flatnonzero(ended)]
        if self.mode is AutoresetMode.SAME_STEP:
            final = infos.get("final_obs")
            if final is None:
                raise EnvironmentFault(
                    f"{type(self.env).__name__} declares SAME_STEP autoreset but gave no final_obs at step "
                    f"{self.num_steps} although env {indices[0]} ended"
                )
            self.final_observations = {i: self._single(final, i) for i in indices}
            return observations, infos
        self.final_observations = {i: self._single(observations, i) for i in indices}
        self._masks.read(observations, infos, ~ended, self.num_steps)
        return self._call("reset", options={"reset_mask": ended.copy()})

    def _replaced(self, infos: dict[str, Any]) -> np.ndarray:
        """Return which copies failed and were replaced, (N,) bool; raise where one was not."""
        failed = infos.get(f"_{FAULT}", np.zeros(self.env.num_envs, dtype=np.bool_))
        for index in np.flatnonzero(failed):
            if not infos[REPLACED][index]:
                raise EnvironmentFault(infos[FAULT][index])
        for fault in {infos[FAULT][index]: None for index in np.flatnonzero(failed)}:
            _log.warning("%s; it was replaced, and its episode is cut off before this step", fault)
        return failed

    def _fresh_masks(self, ended: np.ndarray) -> np.ndarray:
        """Return whose masks (N,) the latest call gave: of an ended episode nobody acts on the last one."""
        if self.mode is AutoresetMode.SAME_STEP:
            return self._every_row
        return ended if self.mode is AutoresetMode.DISABLED else ~ended

    def _single(self, observations: Any, index: int) -> Any:
        """Return a copy of one environment's observation, from batched arrays or an array of observations."""
        batched = not (isinstance(observations, np.ndarray) and observations.dtype == object)
        one = tree_map(lambda x: x[index], observations) if batched else observations[index]
        return tree_map(np.array, self.source.strip(one))

    def _set_observations(self, observations: Any, infos: dict[str, Any], rows: np.ndarray) -> None:
        self._check_structure(observations)
        self.observations = self._masks.read(observations, infos, rows, self.num_steps)
        if NOTICE in infos and rank() == 0:  # the copies of all ranks are alike
            for index in np.flatnonzero(infos[f"_{NOTICE}"]).tolist():
                warn_once(_log, infos[NOTICE][index], f"env {index} {infos[NOTICE][index]}")
        if self.num_steps < _FIRST_STEPS:
            self.check_values()

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Go on where `state` was taken, or return why that cannot be done."""
        reason = set_env_state(self.env, state["env"])
        if reason:
            return reason
        self.observations = tree_map(lambda x: x.numpy().copy(), state["observations"])
        self._masks.current = None if state["action_masks"] is None else state["action_masks"].numpy().copy()
        self.starts = state["starts"].numpy().copy()
        self._ended = state["ended"].numpy().copy()
        self._any_ended = bool(self._ended.any())
        self.num_steps = state["num_steps"]
        return ""
