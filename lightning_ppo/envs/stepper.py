"""Step a vector environment whatever its autoreset mode, and check what it returns."""

import logging
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from lightning_ppo.envs.declared import NOTICE, Declared, misfit
from lightning_ppo.envs.faults import close_env
from lightning_ppo.envs.masks import ActionMasks, masked_choices, observed_space
from lightning_ppo.envs.processes import FAULT, REPLACED
from lightning_ppo.envs.scores import scores_of
from lightning_ppo.envs.state import get_env_state, set_env_state
from lightning_ppo.envs.training_signal import REWARDS, TERMINATIONS, Lesson
from lightning_ppo.support.distributed import rank
from lightning_ppo.support.errors import EnvironmentFault, one_line
from lightning_ppo.support.notices import warn_once
from lightning_ppo.support.spaces import space_leaves, space_structure
from lightning_ppo.support.tree import tree_map

_log = logging.getLogger(__name__)

_FIRST_STEPS = 3
"""Steps, the reset counted, after each of which values are checked; later they are with whole rollouts."""


class Stepper(ABC):
    """Steps a vector environment and hides how it starts new episodes.

    After `step`, `observations` is what the policy acts on next, and the other attributes tell of the step just made.

    Attributes:
        takes_tensors: Whether actions are tensors and everything below is one, too; else all are NumPy arrays.
        observations: (N, ...), current observations without their action masks; valid until the next step.
        action_masks: (N, M) bool, choices that are legal now; None where the environment has no masks.
        starts: (N,) bool, the current observation is the first of an episode.
        filler: (N,) bool; this step only reset the environment (NEXT_STEP) or replaced it, it is no transition.
        any_filler: Whether there may be such an environment.
        final_observations: Last observations of ended episodes, where they differ from what follows.
        lesson: Rewards and terminations, each (N,), to learn from instead of the step's own, or None.
        num_steps: Steps made, for error messages.
        seeds: Of the first episodes, one for each copy.
        failed: Set it after a fault: the state of the environments is then not worth saving.
        declared: Checks the values of observations.
        sizes: Number of choices of each discrete component of an action.

    Args:
        env: The vector environment.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.

    Raises:
        EnvironmentFault: If the environment's autoreset mode is unknown.
        ConfigError: If there can be no action masks.
    """

    takes_tensors = False
    action_masks: Any
    starts: Any
    filler: Any
    final_observations: Any
    _ended: Any

    def __init__(self, env: VectorEnv, action_mask: str) -> None:
        self.env = env
        self.mode = autoreset_mode(env)
        self.observations: Any = None
        self.any_filler = False
        self.lesson: Lesson | None = None
        self.num_steps = 0
        self.failed = False
        self.seeds: list[int] = []
        self.sizes = masked_choices(env, action_mask)
        self.declared = Declared(observed_space(env.single_observation_space, action_mask))
        self._structure = space_structure(env.observation_space)
        self._shapes = [leaf.shape for leaf in space_leaves(env.observation_space).values()]
        self._dtypes: list[Any] = [None] * len(self._shapes)

    @abstractmethod
    def begin(self, observations: Any, infos: dict[str, Any]) -> None:
        """Take in what a reset returned."""

    @abstractmethod
    def step(self, actions: Any) -> tuple[Any, Any, Any]:
        """Step with the environment's actions (N, ...); return rewards, terminations and truncations, each (N,)."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on exactly here; `env` is None where the environment's state cannot be had."""
        env_state, reason = (None, "one of them failed") if self.failed else get_env_state(self.env)
        return {
            "kind": type(self.env.unwrapped).__name__,
            "env": env_state,
            "reason": reason,
            "observations": tree_map(_saved, self.observations),
            "action_masks": None if self.action_masks is None else _saved(self.action_masks),
            "starts": _saved(self.starts),
            "ended": _saved(self._ended),
            "num_steps": self.num_steps,
        }

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Go on where `state` was taken; the environment must have been reset once before.

        Returns:
            Nothing, or why that cannot be done; all episodes must then start anew.
        """

    def resume(self, state: dict[str, Any]) -> str:
        """Go on where `state` was taken, or start all episodes anew and return why."""
        reason = state["reason"] if state["env"] is None else self.load_state_dict(state)
        if reason and state["env"] is not None:  # it may be half restored
            self.reset(self.seeds)
        return reason

    def close(self) -> None:
        """Close the environment; should it raise, a warning says so."""
        close_env(self.env)

    def reset(self, seeds: list[int]) -> None:
        """Start all episodes anew, environment i from `seeds[i]`."""
        self.begin(*self._call("reset", seed=seed_argument(self.env, seeds)))

    def check_values(self) -> None:
        """Check the present observations against what the space declares.

        Raises:
            EnvironmentFault: If a value has no meaning.
        """
        shown = tree_map(lambda x: x[None], self.observations)
        self.declared.check(shown, lambda _, env: (self.num_steps, env))

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return call(self.env, method, self.num_steps, *args, **kwargs)

    def _check_structure(self, observations: Any) -> None:
        """Raise EnvironmentFault if observations are not of the structure, shapes and dtypes they should be."""
        try:
            tree_map(self._check_leaf, self._structure, observations)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            found, expected = misfit(self.env.observation_space, observations) or ("what it must not", "see its space")
            raise EnvironmentFault(f"the environment returned {found} at step {self.num_steps}, {expected}") from None

    def _check_leaf(self, number: int, values: Any) -> None:
        if values.shape != self._shapes[number]:
            raise EnvironmentFault(
                f"the environment returned observations of shape {tuple(values.shape)} at step {self.num_steps}, "
                f"expected {self._shapes[number]}"
            )
        if values.dtype == self._dtypes[number]:
            return
        if self._dtypes[number] is None:
            self._dtypes[number] = values.dtype
        # what is kept has the dtype that was seen first
        elif not _can_cast(values.dtype, self._dtypes[number]):
            raise EnvironmentFault(
                f"the environment returned observations of dtype {values.dtype} at step {self.num_steps}, "
                f"{self._dtypes[number]} before"
            )


def _can_cast(found: Any, first: Any) -> bool:
    """Return whether numbers of one dtype can be kept in another; digits may be lost, fractions and size may not."""
    if isinstance(found, torch.dtype):
        return first.is_floating_point or torch.promote_types(found, first) == first
    return first.kind == "f" or np.can_cast(found, first, "safe")


def _saved(x: Any) -> torch.Tensor:
    return x.detach().to("cpu", copy=True) if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x))


def call(env: VectorEnv, method: str, num_steps: int, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a vector environment that has made `num_steps` steps.

    Raises:
        EnvironmentFault: If it raises anything.
    """
    try:
        return getattr(env, method)(*args, **kwargs)
    except EnvironmentFault:
        raise
    except Exception as error:
        raise EnvironmentFault(
            f"the environment raised in {method} after {num_steps} steps: {type(error).__name__}: {one_line(error)}"
        ) from error


def seed_argument(env: VectorEnv, seeds: list[int]) -> list[int] | int:
    """Return what a vector environment's reset takes as its seed: one for each copy where it can, else the first."""
    per_copy = hasattr(env.unwrapped, "env_fns") or getattr(env.unwrapped, "seeded_by_copy", False)
    return list(seeds) if per_copy else seeds[0]


class VectorStepper(Stepper):
    """Steps a vector environment of NumPy arrays, whatever its autoreset mode.

    Attributes:
        final_observations: By the index of the environment.

    Args:
        env: The vector environment.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.

    Raises:
        EnvironmentFault: If the environment's autoreset mode is unknown, or it raises or returns a wrong shape.
        ConfigError: If there can be no action masks.
    """

    def __init__(self, env: VectorEnv, action_mask: str = "auto") -> None:
        super().__init__(env, action_mask)
        self.final_observations: dict[int, Any] = {}
        self.starts = np.ones(env.num_envs, dtype=np.bool_)
        self._every_row = np.ones(env.num_envs, dtype=np.bool_)
        self._masks = ActionMasks(env, action_mask)
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
        return tree_map(np.array, self._masks.strip(one))

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


def autoreset_mode(env: VectorEnv) -> AutoresetMode:
    """Return how a vector environment starts the next episode.

    Raises:
        EnvironmentFault: If its metadata does not say, or says something unknown.
    """
    mode = (env.metadata or {}).get("autoreset_mode")
    try:
        return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
    except ValueError:
        known = ", ".join(m.value for m in AutoresetMode)
        raise EnvironmentFault(
            f"the vector environment {type(env).__name__} declares the autoreset mode {mode!r}; set "
            f"metadata['autoreset_mode'] to one of {known}, or episode ends cannot be told from resets"
        ) from None
