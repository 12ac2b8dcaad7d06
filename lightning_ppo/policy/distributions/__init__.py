"""One action head per action space and distribution, in plain tensor arithmetic."""

import gymnasium
import numpy as np
from gymnasium import spaces

from lightning_ppo.policy.distributions.base import ActionHead
from lightning_ppo.policy.distributions.bounded import BetaHead, TanhGaussianHead
from lightning_ppo.policy.distributions.composite import CompositeHead
from lightning_ppo.policy.distributions.continuous import GaussianHead, StateDependentExplorationHead, StateGaussianHead
from lightning_ppo.policy.distributions.discrete import MASKED, CategoricalHead, MultiCategoricalHead
from lightning_ppo.support.errors import ConfigError, UnsupportedSpaceError
from lightning_ppo.support.spaces import SUPPORTED

__all__ = [
    "MASKED",
    "ActionHead",
    "BetaHead",
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
    space: gymnasium.Space, distribution: str = "gaussian", log_std_init: float = 0.0, num_features: int = 0
) -> ActionHead:
    """Return the action head of a space.

    Args:
        space: The action space.
        distribution: What its Box parts get, by name (see `PolicyConfig.distribution`).
        log_std_init: Initial log standard deviation of the Gaussian ones.
        num_features: F, features of the policy network that `gsde` builds on.

    Raises:
        UnsupportedSpaceError: If no head handles the space.
        ConfigError: If the distribution cannot be used here.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple) and space.spaces:
        return CompositeHead(space, lambda part: make_action_head(part, distribution, log_std_init, num_features))
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(space)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return MultiCategoricalHead(space)
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UnsupportedSpaceError(
            f"action space {space} is not supported; supported are {SUPPORTED}, a Box being of floating-point numbers"
        )
    if distribution == "gsde":
        if not num_features:
            raise ConfigError("policy.distribution: gsde needs the features of the built-in network")
        return StateDependentExplorationHead(space, num_features, log_std_init)
    if distribution == "beta":
        return BetaHead(space)
    heads = {"gaussian": GaussianHead, "state_gaussian": StateGaussianHead, "tanh_gaussian": TanhGaussianHead}
    return heads[distribution](space, log_std_init)
