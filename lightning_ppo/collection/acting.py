"""How actions are computed while collecting: by the policy itself, or by its arithmetic in NumPy for small networks.

For a small MLP, LSTM or GRU on the CPU most of a torch call is overhead. `NumpyActor` computes the same action from the
same parameter memory in a third of the time. It decides actions only: distributions, log-probabilities and values of a
rollout are always the policy's own. Where the policy is on a GPU and the environment is not, it acts with a copy of the
weights as long as there are few, which takes less time than the way to the GPU and back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_ppo.collection.numpy_acting import Arrays, NumpyActor
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.rollout.shapes import Observations
from lightning_ppo.speed import switch
from lightning_ppo.speed.graphs import Recorded
from lightning_ppo.support.errors import one_line
from lightning_ppo.support.tree import tree_map

WORK_ON_HOST = 1_000_000
"""Products of a weight and an input, N times the weights, up to which acting for a GPU stays on the host.

Not measured but for 11,000, where it took half the time of the GPU (docs/speed.md)."""


class Actor(Protocol):
    """Acts through one rollout.

    Attributes:
        device: Where it takes observations from, and has the tensors below.
        actions: (T, N, ...), what was sampled so far, as the policy stores it.
        states: (T, N, H), recurrent states before each step, or None for a policy without memory.
        state: (N, H), recurrent states after the latest step, or None.
    """

    device: torch.device
    actions: Tensor
    states: Tensor | None
    state: Tensor | None

    def __call__(self, step: int, observations: Arrays, starts: Any, action_masks: Any = None) -> Arrays:
        """Return the environment's actions for a step; it may write into them, so they are not what is stored.

        Args:
            step: From 0 to T - 1.
            observations: (N, ...), as arrays or tensors.
            starts: (N,) bool, an episode starts with the observation.
            action_masks: (N, M) bool, or None.
        """


def make_actor(
    policy: ActorCritic,
    shape: tuple[int, int],
    generator: torch.Generator,
    state: Tensor | None = None,
    as_tensors: bool = False,
    recorded: Recorded | None = None,
) -> Actor:
    """Return the actor for a rollout of shape (T, N): the fastest, or that of `policy.act` with `plain`.

    Args:
        policy: The policy.
        shape: (T, N).
        generator: Source of the noise, on the policy's device.
        state: (N, H), recurrent states before the first step, or None for a policy without memory.
        as_tensors: Whether the environment takes its actions as tensors instead of NumPy arrays.
        recorded: Acts instead of the policy, if anything does.
    """
    device = generator.device.type
    if not switch.is_on():
        return TorchActor(policy, shape, generator, state, as_tensors)
    near = device == "cpu" or shape[1] * sum(p.numel() for p in policy.parameters()) <= WORK_ON_HOST
    if near and not as_tensors and not torch.is_autocast_enabled(device) and NumpyActor.suits(policy):
        return NumpyActor(policy, shape, generator, state)
    return TorchActor(policy, shape, generator, state, as_tensors, recorded)


class RecordedActing(Recorded):
    """`act_for` of a policy, recorded as a CUDA graph; where that fails it is called, and a warning says so.

    Args:
        policy: The policy.
    """

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__(partial(act_for, policy), lambda: (*policy.parameters(), *policy.buffers()))
        self.failed = False

    def __call__(self, *arguments: Any) -> Any:
        """Return what `act_for` returns."""
        if self.failed:
            return self.function(*arguments)
        try:
            return super().__call__(*arguments)
        except RuntimeError as error:
            found = self.function(*arguments)  # which raises what is wrong with the policy itself
            self.failed = True
            reason = one_line(error, 200)
            rank_zero_warn(f"compile: acting cannot be recorded as a CUDA graph ({reason}); it continues without one")
            return found


def act_for(
    policy: ActorCritic,
    observations: Observations,
    noise: Tensor,
    masks: Tensor | None,
    states: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor | None, Any]:
    """Return what `policy.act` returns, and the actions as the environment takes them."""
    actions, after = policy.act(observations, noise, masks, states, starts)
    return actions, after, policy.head.to_env(actions)


class TorchActor:
    """Acts with `policy.act`, whatever the policy and its device.

    Args:
        policy: The policy.
        shape: (T, N).
        generator: Source of the noise, on the policy's device.
        state: (N, H), recurrent states before the first step, or None for a policy without memory.
        as_tensors: Whether the environment takes its actions as tensors instead of NumPy arrays.
        recorded: Acts instead of the policy, see `RecordedActing`.
    """

    def __init__(
        self,
        policy: ActorCritic,
        shape: tuple[int, int],
        generator: torch.Generator,
        state: Tensor | None = None,
        as_tensors: bool = False,
        recorded: Recorded | None = None,
    ) -> None:
        head, self.device = policy.head, generator.device
        self.as_tensors = as_tensors
        self.act: Callable[..., Any] = recorded or partial(act_for, policy)
        if recorded is not None:
            recorded.refresh()
        self.noise = head.noise(shape, generator).unbind(0)
        self.actions = torch.empty((*shape, *head.action_shape), dtype=head.action_dtype, device=self.device)
        self.state = state
        self.states = None if state is None else state.new_empty(*shape, state.shape[-1])

    def __call__(self, step: int, observations: Arrays, starts: Any, action_masks: Any = None) -> Arrays:
        """Return the environment's actions for a step."""
        seen, begun, masks = tree_map(self._there, (observations, starts, action_masks))
        if self.states is None or self.state is None:
            begun = None
        else:
            self.states[step] = self.state
        self.actions[step], self.state, taken = self.act(seen, self.noise[step], masks, self.state, begun)
        return taken if self.as_tensors else tree_map(lambda x: x.cpu().numpy(), taken)

    def _there(self, x: Any) -> Tensor | None:
        """Return an array or tensor on the policy's device."""
        return None if x is None else torch.as_tensor(x, device=self.device)
