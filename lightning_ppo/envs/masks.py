"""Action masks: where an environment says which of its discrete actions are legal."""

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv

from lightning_ppo.support.errors import ConfigError, EnvironmentFault, described
from lightning_ppo.support.spaces import space_leaves


def choices_of(space: gymnasium.Space) -> list[int]:
    """Return the number of choices of each discrete component of an action."""
    found: list[int] = []
    for leaf in space_leaves(space).values():
        if isinstance(leaf, spaces.Discrete):
            found.append(int(leaf.n))
        elif isinstance(leaf, spaces.MultiDiscrete):
            found += np.ravel(leaf.nvec).tolist()
        elif isinstance(leaf, spaces.MultiBinary):
            found += [2] * int(np.prod(leaf.shape))
    return found


def observed_space(space: gymnasium.Space, source: str) -> gymnasium.Space:
    """Return an observation space without the entry that is an action mask, if `source` is `observation:KEY`.

    Raises:
        ConfigError: If there is no such entry.
    """
    kind, _, key = source.partition(":")
    if kind != "observation":
        return space
    if not isinstance(space, spaces.Dict) or key not in space.spaces or len(space.spaces) < 2:
        raise ConfigError(f"env.action_mask: {source} needs a Dict observation with the entry {key!r} and others")
    return spaces.Dict([(name, child) for name, child in space.spaces.items() if name != key])


class MaskSource:
    """Where a vector environment tells which actions are legal, for arrays and tensors alike.

    Attributes:
        kind: `none`, `info`, `observation` or `method`; `auto` until the first infos are known.
        key: Of the entry of observations, or the name of the method.
        sizes: Number of choices of each discrete component of an action.

    Args:
        env: The vector environment.
        source: `auto` (infos, if the first ones have masks), `none`, `info`, `observation:KEY` or `method:NAME`.

    Raises:
        ConfigError: If the action space has nothing to mask, although `source` says where masks are.
    """

    def __init__(self, env: VectorEnv, source: str) -> None:
        self.env, self.space = env, env.single_action_space
        self.kind, _, self.key = source.partition(":")
        self.sizes = choices_of(self.space)
        self._asked = source != "auto"
        if source not in ("auto", "none") and not self.sizes:
            raise ConfigError(f"env.action_mask: {source} needs discrete actions, the action space is {self.space}")

    def told(self, infos: dict[str, Any], step: int) -> bool:
        """Return whether there are masks.

        Args:
            infos: Infos of the vector environment.
            step: Steps made so far, for error messages.

        Raises:
            EnvironmentFault: If infos have masks although the first ones had none, or although no action is discrete.
        """
        if self.kind == "auto":
            self.kind = "info" if "action_mask" in infos else "none"
        if not self._asked and "action_mask" in infos and not (self.kind == "info" and self.sizes):
            why = "but none before" if self.sizes else f"but the actions are continuous: {self.space}"
            raise EnvironmentFault(
                f"the environment gave info['action_mask'] at step {step}, {why}; give it with every reset and step, "
                "or set env.action_mask=none"
            )
        return self.kind != "none"

    def strip(self, observations: Any) -> Any:
        """Return observations of one or all environments without the mask."""
        if self.kind != "observation":
            return observations
        return {key: value for key, value in observations.items() if key != self.key}


class ActionMasks:
    """Reads action masks of NumPy off a vector environment.

    A mask is what `action_space.sample(mask)` takes, or one array of M choices laid end to end, two for each bit of a
    MultiBinary space.

    Attributes:
        current: (N, M) bool, what is legal now; None where the environment has no masks.

    Args:
        source: Where the environment tells them.

    Raises:
        ConfigError: If there is no method to call.
    """

    def __init__(self, source: MaskSource) -> None:
        self.source = source
        self.size = sum(source.sizes)
        self.current: np.ndarray | None = None
        if source.kind == "method" and not hasattr(source.env, "call"):
            raise ConfigError(
                f"env.action_mask: method:{source.key} needs copies to call; set env.backend to sync or async"
            )

    def read(self, observations: Any, infos: dict[str, Any], rows: np.ndarray, step: int) -> Any:
        """Take in the masks of the current step, and return the observations without them.

        Args:
            observations: (N, ...), as the environment gave them.
            infos: Infos of the vector environment.
            rows: (N,) bool, environments whose mask is that of a step to come; the others keep theirs.
            step: Steps made so far, for error messages.

        Raises:
            EnvironmentFault: If a mask is missing, comes unexpected, has the wrong size, or leaves no action.
        """
        source = self.source
        if not source.told(infos, step):
            return observations
        if not rows.any():
            return source.strip(observations)
        if source.kind == "info":
            masks = self._of_infos(infos, rows, step)
        elif source.kind == "method":
            masks = self._of_method(step)
        else:
            masks = observations[source.key]
        joined = self._joined(masks, rows, step)
        self.current = joined if self.current is None else np.where(rows[:, None], joined, self.current)
        self._check(self.current, step)
        return source.strip(observations)

    def _of_infos(self, infos: dict[str, Any], rows: np.ndarray, step: int) -> Any:
        masks = infos.get("action_mask")
        # a vector environment of its own kind may give masks of all copies without saying so
        given = infos.get("_action_mask", np.full(len(rows), masks is not None))
        missing = np.flatnonzero(rows & ~given)
        if missing.size:
            raise EnvironmentFault(f"env {missing[0]} gave no info['action_mask'] at step {step}")
        return masks

    def _of_method(self, step: int) -> list[Any]:
        try:
            return list(cast("SyncVectorEnv", self.source.env).call(self.source.key))
        except Exception as error:
            raise EnvironmentFault(
                f"env.action_mask: calling {self.source.key} failed at step {step}: {described(error)}"
            ) from error

    def _joined(self, masks: Any, rows: np.ndarray, step: int) -> np.ndarray:
        """Return masks of N environments, those of `rows`, as one array (N, M)."""
        if isinstance(masks, np.ndarray) and _is_joined(masks[0], self.size) and _says_yes_or_no(masks).all():
            return masks.reshape(len(masks), -1).astype(np.bool_)
        joined = np.ones((len(rows), self.size), np.bool_)
        for index in np.flatnonzero(rows).tolist():
            try:
                joined[index] = joined_mask(self.source.space, mask_of(masks, index), self.size)
            except (ValueError, KeyError, TypeError) as error:
                raise EnvironmentFault(
                    f"env {index} gave an action mask that does not fit {self.source.space} at step {step}: {error}"
                ) from None
        return joined

    def _check(self, masks: np.ndarray, step: int) -> None:
        """Raise EnvironmentFault where a part of the action has no legal choice."""
        row = row_without_choice(masks, self.source.sizes)
        if row is not None:
            raise nothing_legal(row, step)


def row_without_choice(masks: np.ndarray, sizes: list[int]) -> int | None:
    """Return the first row of masks (N, M) in which a part of the action, given their sizes, has no legal choice."""
    first = 0
    for size in sizes:
        illegal = np.flatnonzero(~masks[:, first : first + size].any(1))
        if illegal.size:
            return int(illegal[0])
        first += size
    return None


def nothing_legal(env: int, step: int) -> EnvironmentFault:
    """Return the fault of an environment whose mask leaves no action."""
    return EnvironmentFault(f"env {env} masks every choice of an action at step {step}; at least one must be legal")


def mask_of(masks: Any, index: int) -> Any:
    """Return one environment's mask of batched, nested ones."""
    if isinstance(masks, dict):
        return {key: mask_of(value, index) for key, value in masks.items()}
    if isinstance(masks, tuple):
        return tuple(mask_of(value, index) for value in masks)
    return masks[index]


def joined_mask(space: gymnasium.Space, mask: Any, size: int) -> np.ndarray:
    """Return one environment's mask, in any form that it may have, as an array of all choices, (M,) bool.

    Args:
        space: Of the actions.
        mask: An array of all choices, laid end to end, or what `space.sample(mask)` takes.
        size: M.

    Raises:
        ValueError: If there are more or fewer of them than the space has, or if they say more than yes and no.
        KeyError: If a part of the space has no mask.
        TypeError: If they are no numbers.
    """
    return _as_bool(mask.ravel()) if _is_joined(mask, size) else np.concatenate(_legal(space, mask))


def _is_joined(mask: Any, size: int) -> bool:
    """Return whether one environment's mask is an array of all choices, laid end to end."""
    return isinstance(mask, np.ndarray) and mask.dtype != object and mask.size == size


def _says_yes_or_no(values: np.ndarray) -> np.ndarray:
    return (values == 0) | (values == 1)


def _as_bool(values: np.ndarray) -> np.ndarray:
    strange = values[~_says_yes_or_no(values)]
    if strange.size:
        raise ValueError(f"expected 0 and 1, got {strange[0]}")
    return values.astype(np.bool_)


def _legal(space: gymnasium.Space, mask: Any) -> list[np.ndarray]:
    """Return the legal choices of each part of a space; a part whose mask is None has all of its own.

    Raises:
        ValueError: If there are more or fewer of them than the space has.
        KeyError: If a part has no mask.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple) and isinstance(mask, np.ndarray):
        raise ValueError(f"a flat array of {mask.size} entries for {sum(choices_of(space))} choices")
    if isinstance(space, spaces.Dict):
        discrete = {key: child for key, child in space.spaces.items() if choices_of(child)}
        return [part for key, child in discrete.items() for part in _legal(child, None if mask is None else mask[key])]
    if isinstance(space, spaces.Tuple):
        masks = [None] * len(space.spaces) if mask is None else mask
        return [part for child, m in zip(space.spaces, masks, strict=True) for part in _legal(child, m)]
    expected = sum(choices_of(space))
    if mask is None or not expected:
        return [np.ones(expected, np.bool_)]
    flat = np.concatenate([np.ravel(part) for part in _parts(mask)])
    if isinstance(space, spaces.MultiBinary) and 2 * flat.size == expected:
        _as_bool(flat[flat != 2])
        flat = np.stack((flat != 1, flat != 0), 1).ravel()  # 0 and 1 leave one choice, 2 leaves both
    if flat.size != expected:
        raise ValueError(f"{flat.size} entries for the {expected} choices of {space}")
    return [_as_bool(flat)]


def _parts(mask: Any) -> list[Any]:
    """Return the arrays of nested tuples or lists, as MultiDiscrete.sample takes them."""
    if isinstance(mask, tuple | list):
        return [part for child in mask for part in _parts(child)]
    return [mask]
