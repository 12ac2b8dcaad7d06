"""What steps a vector environment: its interface, and what arrays and tensors have in common."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from lightning_ppo.envs.declared import Declared, misfit
from lightning_ppo.envs.faults import close_env
from lightning_ppo.envs.infos import InfoReader
from lightning_ppo.envs.masks import MaskSource, observed_space
from lightning_ppo.envs.state import get_env_state
from lightning_ppo.envs.training_signal import Lesson
from lightning_ppo.support.errors import EnvironmentFault, described
from lightning_ppo.support.spaces import space_leaves, space_structure
from lightning_ppo.support.tree import tree_map


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
        info_values: (K, N), logged entries of the step's infos, NaN where a copy told none; None if none are logged.
        successes: (N,), whether the episodes that ended have reached their goals, NaN where none says; None if none do.
        num_steps: Steps made, for error messages.
        seeds: Of the first episodes, one for each copy.
        failed: Set it after a fault: the state of the environments is then not worth saving.
        declared: Checks the values of observations.
        source: Where action masks come from.
        infos: Reads infos.

    Args:
        env: The vector environment.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.
        infos: Reads infos.

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

    def __init__(self, env: VectorEnv, action_mask: str, infos: InfoReader) -> None:
        self.env = env
        self.mode = autoreset_mode(env)
        self.observations: Any = None
        self.any_filler = False
        self.lesson: Lesson | None = None
        self.infos = infos
        self.info_values: Any = None
        self.successes: Any = None
        self.num_steps = 0
        self.failed = False
        self.seeds: list[int] = []
        self.source = MaskSource(env, action_mask)
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
    except (Exception, SystemExit) as error:
        raise EnvironmentFault(
            f"the environment raised in {method} after {num_steps} steps: {described(error)}"
        ) from error


def seed_argument(env: VectorEnv, seeds: list[int]) -> list[int] | int:
    """Return what a vector environment's reset takes as its seed: one for each copy where it can, else the first."""
    per_copy = hasattr(env.unwrapped, "env_fns") or getattr(env.unwrapped, "seeded_by_copy", False)
    return list(seeds) if per_copy else seeds[0]


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
