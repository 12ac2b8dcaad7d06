"""Action masks: where an environment says which of its discrete actions are legal."""

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv

from lightning_ppo.errors import ConfigError, EnvironmentFault
from lightning_ppo.spaces import space_leaves


def _choices(space: gymnasium.Space) -> list[int]:
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


class ActionMasks:
    """Reads action masks off a vector environment.

    Attributes:
        current: (N, M) bool, what is legal now; None where the environment has no masks.

    Args:
        env: The vector environment.
        source: `auto` (infos, if the first ones have masks), `none`, `info`, `observation:KEY` or `method:NAME`.

    Raises:
        ConfigError: If the action space has nothing to mask.
    """

    def __init__(self, env: VectorEnv, source: str) -> None:
        self.env = env
        self.kind, _, self.key = source.partition(":")
        self.space = env.single_action_space
        self._sizes = _choices(self.space)
        self.size = sum(self._sizes)
        self.current: np.ndarray | None = None
        if self.kind == "auto" and not self.size:
            self.kind = "none"
        if self.kind != "none" and not self.size:
            raise ConfigError(f"env.action_mask: {source} needs discrete actions, the action space is {self.space}")

    def read(self, observations: Any, infos: dict[str, Any], rows: np.ndarray, step: int) -> Any:
        """Take in the masks of the current step, and return the observations without them.

        Args:
            observations: (N, ...), as the environment gave them.
            infos: Infos of the vector environment.
            rows: (N,) bool, environments whose mask is that of a step to come; the others keep theirs.
            step: Steps made so far, for error messages.

        Raises:
            EnvironmentFault: If a mask is missing, has the wrong size, or leaves no action.
        """
        if self.kind == "auto":
            self.kind = "info" if "action_mask" in infos else "none"
        if self.kind == "none":
            return observations
        if not rows.any():
            return self.strip(observations)
        if self.kind == "info":
            masks = self._of_infos(infos, rows, step)
        elif self.kind == "method":
            per_env = cast("SyncVectorEnv", self.env).call(self.key)
            masks = np.concatenate([self._flat(_batch_of_one(mask), step) for mask in per_env])
        else:
            masks = self._flat(observations[self.key], step)
        self.current = masks if self.current is None else np.where(rows[:, None], masks, self.current)
        self._check(self.current, step)
        return self.strip(observations)

    def strip(self, observations: Any) -> Any:
        """Return observations of one or all environments without the mask."""
        if self.kind != "observation":
            return observations
        return {key: value for key, value in observations.items() if key != self.key}

    def _of_infos(self, infos: dict[str, Any], rows: np.ndarray, step: int) -> np.ndarray:
        masks = infos.get("action_mask")
        # a vector environment of its own kind may give masks of all copies without saying so
        given = infos.get("_action_mask", np.full(len(rows), masks is not None))
        missing = np.flatnonzero(rows & ~given)
        if missing.size:
            raise EnvironmentFault(f"env {missing[0]} gave no info['action_mask'] at step {step}")
        return self._flat(masks, step)

    def _flat(self, masks: Any, step: int) -> np.ndarray:
        """Return masks of N environments, nested and shaped as they may be, as one array (N, M)."""
        parts = [np.asarray(part) for part in _leaves(self.space, masks)]
        batch = len(parts[0])
        if any(part.dtype == object for part in parts):  # tuples of arrays, as MultiDiscrete.sample takes them
            rows = [[np.ravel(p) for part in parts for p in _leaves(self.space, part[i])] for i in range(batch)]
            flat = np.stack([np.concatenate(row) for row in rows])
        else:
            flat = np.concatenate([part.reshape(batch, -1) for part in parts], axis=1)
        if flat.shape[1] != self.size:
            raise EnvironmentFault(
                f"the action mask has {flat.shape[1]} entries at step {step}, but {self.space} has {self.size} choices"
            )
        return flat.astype(np.bool_)

    def _check(self, masks: np.ndarray, step: int) -> None:
        """Raise EnvironmentFault where a part of the action has no legal choice."""
        first = 0
        for size in self._sizes:
            illegal = np.flatnonzero(~masks[:, first : first + size].any(1))
            if illegal.size:
                raise EnvironmentFault(
                    f"env {illegal[0]} masks every choice of an action at step {step}; at least one must be legal"
                )
            first += size


def _batch_of_one(mask: Any) -> Any:
    """Add a leading dimension of 1 to the arrays of one environment's mask."""
    if isinstance(mask, dict):
        return {key: _batch_of_one(value) for key, value in mask.items()}
    if isinstance(mask, tuple | list):
        return tuple(_batch_of_one(value) for value in mask)
    return np.asarray(mask)[None]


def _leaves(space: gymnasium.Space, mask: Any) -> list[Any]:
    """Return the arrays of a mask in the order of the action space; continuous parts have none."""
    if isinstance(mask, dict) and isinstance(space, spaces.Dict):
        pairs = [(child, mask.get(key)) for key, child in space.spaces.items()]
    elif isinstance(mask, tuple | list):
        children = space.spaces if isinstance(space, spaces.Tuple) else [space] * len(mask)
        pairs = list(zip(children, mask, strict=True))
    else:
        return [mask]
    return [leaf for child, part in pairs if part is not None for leaf in _leaves(child, part)]
