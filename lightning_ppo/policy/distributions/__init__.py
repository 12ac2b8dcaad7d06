"""One action head per action space and distribution, in plain tensor arithmetic."""

import inspect
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lightning_ppo.policy.distributions.base import ActionHead
from lightning_ppo.policy.distributions.bounded import BetaHead, TanhGaussianHead
from lightning_ppo.policy.distributions.composite import CompositeHead
from lightning_ppo.policy.distributions.continuous import (
    BoxHead,
    GaussianHead,
    StateDependentExplorationHead,
    StateGaussianHead,
)
from lightning_ppo.policy.distributions.discrete import MASKED, CategoricalHead, MultiCategoricalHead
from lightning_ppo.settings.class_path import class_path_of
from lightning_ppo.settings.networks import DISTRIBUTIONS
from lightning_ppo.support.errors import ConfigError, UnsupportedSpaceError
from lightning_ppo.support.spaces import SUPPORTED

__all__ = [
    "MASKED",
    "ActionHead",
    "BetaHead",
    "BoxHead",
    "CategoricalHead",
    "CompositeHead",
    "GaussianHead",
    "MultiCategoricalHead",
    "StateDependentExplorationHead",
    "StateGaussianHead",
    "TanhGaussianHead",
    "make_action_head",
]


def make_action_head(
    space: gymnasium.Space,
    distribution: Any = "gaussian",
    log_std_init: float = 0.0,
    num_features: int = 0,
    log_std_bounds: Sequence[float] | None = None,
) -> ActionHead:
    """Return the action head of a space.

    Args:
        space: The action space.
        distribution: What the parts that it handles get (see `PolicyConfig.distribution`); all others get the built-in
            head of their kind.
        log_std_init: Initial log standard deviation of the Gaussian ones.
        num_features: F, features of the policy network that `gsde` builds on; 0 if they are not known.
        log_std_bounds: Bounds of that log standard deviation.

    Raises:
        UnsupportedSpaceError: If no head handles the space.
        ConfigError: If the distribution cannot be used here.
    """
    own = DISTRIBUTIONS.load(distribution)
    if 0 in (space.shape or ()):
        raise UnsupportedSpaceError(f"action space {space} has no components; leave it out of what the agent does")
    if isinstance(space, spaces.Dict | spaces.Tuple) and space.spaces and not isinstance(space, own.handles):
        rest = distribution, log_std_init, num_features, log_std_bounds
        return CompositeHead(space, lambda part: make_action_head(part, *rest))
    if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        raise _unsupported(space)
    gaussian = {"log_std_init": log_std_init, "log_std_bounds": log_std_bounds}
    if isinstance(space, own.handles):
        takes_bounds = distribution in DISTRIBUTIONS or "log_std_bounds" in inspect.signature(own).parameters
        if log_std_bounds is not None and not takes_bounds:
            raise ConfigError(f"policy.log_std_bounds: the constructor of {own.__name__} takes none")
        return _build(own, distribution, space, {**gaussian, "num_features": num_features})
    for head in (CategoricalHead, MultiCategoricalHead, GaussianHead):
        if isinstance(space, head.handles):
            return _build(head, head, space, gaussian)
    raise _unsupported(space)


def _build(head: type[ActionHead], entry: Any, space: gymnasium.Space, settings: dict[str, Any]) -> ActionHead:
    """Build a head with those of the settings that its constructor has parameters for."""
    wanted = inspect.signature(head).parameters
    if "num_features" in wanted and not settings["num_features"]:
        name = class_path_of(entry)
        raise ConfigError(f"policy.distribution: {name} needs the features of the built-in network")
    given = {name: value for name, value in settings.items() if name in wanted}
    return DISTRIBUTIONS.instantiate(entry, space, **given)


def _unsupported(space: gymnasium.Space) -> UnsupportedSpaceError:
    return UnsupportedSpaceError(
        f"action space {space} is not supported; supported are {SUPPORTED}, a Box being of floating-point numbers"
    )
