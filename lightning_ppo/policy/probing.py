"""Probe the networks of a policy with zeros: do their shapes fit, do they share parameters?"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.policy.modes import eval_mode
from lightning_ppo.support.errors import ConfigError, described
from lightning_ppo.support.tree import tree_map


def shares_parameters(policy: Any) -> bool:
    """Return whether actor and critic of an `ActorCritic` have parameters in common."""
    with eval_mode(policy):
        inputs, starts = _zeros(policy, 2)
        outputs, values, _ = policy.network(inputs, policy.initial_states(2), starts)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    actors, critics = (
        torch.autograd.grad(x.sum(), parameters, retain_graph=True, allow_unused=True) for x in (outputs, values)
    )
    return any(a is not None and c is not None for a, c in zip(actors, critics, strict=True))


@torch.no_grad()
def try_out(policy: Any) -> None:
    """Raise ConfigError if custom networks do not return what an `ActorCritic` needs.

    They get six or, if they have a memory, one each of two sequences, then three each.
    """
    dtypes = {p.dtype: name for name, p in policy.named_parameters() if p.requires_grad}
    if len(dtypes) > 1:
        (one, name), (other, other_name), *_ = dtypes.items()
        raise ConfigError(f"policy: {name} is of {one}, {other_name} of {other}; what is trained needs one dtype")
    states = policy.initial_states(2)
    for count in (6,) if states is None else (2, 6):
        inputs, starts = _zeros(policy, count)
        try:
            with eval_mode(policy):
                outputs, values, after = policy.network(inputs, states, starts)
        except Exception as error:
            raise ConfigError(f"policy: the network fails on {count} observations: {described(error)}") from error
        expected: list[tuple[str, Tensor | None, tuple[int, ...]]]
        expected = [("outputs", outputs, (count, policy.head.num_outputs + policy.head.num_features))]
        expected += [("values", values, (count,))]
        if count == 2 and states is not None:
            expected += [("states", after, tuple(states.shape))]
        for name, found, wanted in expected:
            if found is None or tuple(found.shape) != wanted:
                shape = None if found is None else tuple(found.shape)
                raise ConfigError(f"policy: the network gives {name} of shape {shape}, expected {wanted}")


def _zeros(policy: Any, count: int) -> tuple[Any, Tensor | None]:
    """Return inputs of the network made of observations (count, ...) of zeros, and whether an episode starts."""
    leaves = policy.inputs.leaves.values()
    batch = [torch.from_numpy(np.zeros((count, *(leaf.shape or ())), leaf.dtype)) for leaf in leaves]
    starts = None if not policy.state_size else torch.arange(count) % 3 == 0
    return policy.inputs(tree_map(batch.__getitem__, policy.inputs.structure)), starts
