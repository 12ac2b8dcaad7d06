"""Build the networks and the action head that the settings name."""

import copy
from typing import Any

import gymnasium
from gymnasium import spaces
from torch import nn

from lightning_ppo.policy.distributions import ActionHead, make_action_head
from lightning_ppo.policy.images import ImpalaCNN, NatureCNN
from lightning_ppo.policy.inputs import Inputs, is_image
from lightning_ppo.policy.layers import MLP
from lightning_ppo.policy.networks import ActorCriticNetwork, CustomNetwork, Encoder, Trunk
from lightning_ppo.settings.class_path import Registry
from lightning_ppo.settings.networks import CORES, ENCODERS, NETWORKS, PolicyConfig
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.support.tree import tree_leaves, tree_map


def build_networks(
    inputs: Inputs, observation_space: gymnasium.Space, action_space: gymnasium.Space, policy: PolicyConfig
) -> tuple[ActionHead, ActorCriticNetwork | CustomNetwork, list[str] | None]:
    """Return the action head, actor and critic, and the entries of a Dict observation that the actor sees.

    The entries are None where the actor sees all.
    """
    if policy.network is not None:
        head = make_action_head(action_space, policy.distribution, policy.log_std_init, 0, policy.log_std_bounds)
        network = _own_module(policy.network, NETWORKS, observation_space, head.num_outputs)
        return head, CustomNetwork(network), None
    actor_space, actor_keys = _without_entries(observation_space, policy.critic_observation_keys)
    actor_trunk = _make_trunk(inputs, actor_space, actor_keys, policy)
    critic_trunk = actor_trunk if policy.shared_trunk else _make_trunk(inputs, observation_space, None, policy)
    features = actor_trunk.num_features
    gaussian = policy.log_std_init, features, policy.log_std_bounds
    head = make_action_head(action_space, policy.distribution, *gaussian)
    repeats = head.num_features // features
    return head, ActorCriticNetwork(actor_trunk, critic_trunk, head.num_outputs, repeats), actor_keys


def brings_networks(policy: PolicyConfig) -> bool:
    """Return whether settings name custom networks."""
    named = ((policy.network, NETWORKS), (policy.encoder, ENCODERS), (policy.core, CORES))
    return any(entry is not None and entry not in registry for entry, registry in named)


def _without_entries(space: gymnasium.Space, keys: list[str] | None) -> tuple[gymnasium.Space, list[str] | None]:
    """Return a Dict space without some entries and the keys that are left; None means all."""
    if not keys:
        return space, None
    known = list(space.spaces) if isinstance(space, spaces.Dict) else []
    missing = [key for key in keys if key not in known]
    if missing or len(set(keys)) == len(known):
        raise ConfigError(
            f"policy.critic_observation_keys: expected some of the observation's entries {known}, got {keys}"
        )
    assert isinstance(space, spaces.Dict)
    left = [key for key in known if key not in keys]
    return spaces.Dict([(key, space[key]) for key in left]), left


def _own_module(entry: Any, registry: Registry, *arguments: Any) -> nn.Module:
    """Return a custom network, or a copy of one that is already built: actor and critic share none."""
    return copy.deepcopy(entry) if isinstance(entry, nn.Module) else registry.instantiate(entry, *arguments)


def _make_trunk(inputs: Inputs, space: gymnasium.Space, keys: list[str] | None, policy: PolicyConfig) -> Trunk:
    """Return encoder, hidden layers and memory for the entries `keys` of an observation; None means all."""
    encoder: Any
    if policy.encoder is not None and policy.encoder not in ENCODERS:
        encoder = _own_module(policy.encoder, ENCODERS, space)
        _require_sizes(encoder, "policy.encoder", "num_features")
    else:
        wanted = tree_map(int, inputs.structure if keys is None else {key: inputs.structure[key] for key in keys})
        leaves = list(inputs.leaves.values())
        chosen = [leaves[number] for number in tree_leaves(wanted)]
        sizes = [_input_shape(leaf) for leaf in chosen]
        encoder = Encoder(sizes, [is_image(leaf) for leaf in chosen], ImpalaCNN if policy.encoder else NatureCNN)
    mlp = MLP(encoder.num_features, policy.hidden_sizes, policy.activation, policy.dropout, policy.layer_norm)
    core: Any = policy.core
    if core in CORES:
        core = CORES.load(core).of_settings(mlp.num_features, policy)
    elif core is not None:
        core = _own_module(core, CORES, mlp.num_features)
        _require_sizes(core, "policy.core", "num_features", "state_size")
    return Trunk(encoder, mlp, core, keys)


def _require_sizes(network: nn.Module, key: str, *names: str) -> None:
    for name in names:
        size = getattr(network, name, None)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"{key}: {type(network).__name__}.{name} must be a number of at least 1, got {size!r}")


def _input_shape(leaf: gymnasium.Space) -> tuple[int, ...]:
    if isinstance(leaf, spaces.Discrete):
        return (int(leaf.n),)
    if isinstance(leaf, spaces.MultiDiscrete):
        return (int(leaf.nvec.sum()),)
    return tuple(leaf.shape or ())
