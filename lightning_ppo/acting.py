"""How actions are computed while collecting: by the policy itself, or by its arithmetic in NumPy for small networks.

For a small MLP on the CPU most of a torch call is overhead. `NumpyActor` computes the same action from the same
parameter memory in a third of the time. It decides actions only: distributions, log-probabilities and values of a
rollout are always the policy's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ppo.distributions import MASKED, CategoricalHead, GaussianHead
from lightning_ppo.graphs import Recorded
from lightning_ppo.inputs import AsFloat
from lightning_ppo.networks import MLP, ActorCriticNetwork, Encoder
from lightning_ppo.normalization import ObservationNormalizer
from lightning_ppo.policy import ActorCritic
from lightning_ppo.rollout import Observations
from lightning_ppo.tree import tree_map

Arrays = Any
"""An array, or nested dicts and tuples of arrays."""


class Actor(Protocol):
    """Acts through one rollout.

    Attributes:
        actions: (T, N, ...), what was sampled so far, as the policy stores it.
        states: (T, N, H), recurrent states before each step, or None for a policy without memory.
        state: (N, H), recurrent states after the latest step, or None.
    """

    actions: Tensor
    states: Tensor | None
    state: Tensor | None

    def __call__(self, step: int, observations: Arrays, starts: Any, action_masks: Any = None) -> Arrays:
        """Return the environment's actions for a step.

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
    """Return the fastest actor for a rollout of shape (T, N), with its noise drawn from `generator`.

    Args:
        policy: The policy.
        shape: (T, N).
        generator: Source of the noise, on the policy's device.
        state: (N, H), recurrent states before the first step, or None for a policy without memory.
        as_tensors: Whether the environment takes its actions as tensors instead of NumPy arrays.
        recorded: What `record_acting` returned, if anything.
    """
    on_cpu = generator.device.type == "cpu" and not as_tensors
    if on_cpu and not torch.is_autocast_enabled("cpu") and NumpyActor.suits(policy):
        return NumpyActor(policy, shape, generator)
    return TorchActor(policy, shape, generator, state, as_tensors, recorded)


def record_acting(policy: ActorCritic) -> Recorded:
    """Return `act_for` of a policy, to be recorded as a CUDA graph."""
    return Recorded(partial(act_for, policy), lambda: (*policy.parameters(), *policy.buffers()))


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
        recorded: Acts instead of the policy, see `record_acting`.
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


class NumpyActor:
    """Acts with the arithmetic of `policy.act` written in NumPy, on views of the policy's own parameters.

    Args:
        policy: A policy that `suits`.
        shape: (T, N).
        generator: Source of the noise, on the CPU.
    """

    def __init__(self, policy: ActorCritic, shape: tuple[int, int], generator: torch.Generator) -> None:
        head, network, num_envs = policy.head, policy.network, shape[1]
        self.head = head
        self.states: Tensor | None = None
        self.state: Tensor | None = None
        self.actions = torch.empty((*shape, *head.action_shape), dtype=head.action_dtype)
        self._actions = self.actions.numpy()
        self._noise = head.noise(shape, generator).numpy()
        hidden = [module for module in network.actor_trunk.mlp if isinstance(module, nn.Linear)]
        self._layers = [
            (
                layer.weight.detach().numpy().T,
                layer.bias.detach().numpy(),
                layer is not network.actor_output,
                np.empty((num_envs, layer.out_features), np.float32),
            )
            for layer in (*hidden, network.actor_output)
        ]
        normalizer = policy.inputs.parts[0]
        self._normalizer = None
        if isinstance(normalizer, ObservationNormalizer):
            scale, shift = (value.numpy().reshape(1, -1) for value in (normalizer.scale, normalizer.shift))
            self._normalizer = (scale, shift, normalizer.clip, np.empty((num_envs, scale.size), np.float32))
        if isinstance(head, GaussianHead):
            self._noise = self._noise * head.log_std.detach().exp().numpy()
            self._bounds = tuple(b.numpy() for b in (head.center, head.half_range, head.low, head.high))

    @staticmethod
    def suits(policy: ActorCritic) -> bool:
        """Return whether the policy is a float32 MLP with tanh units on one Box, and an action head known here."""
        network = policy.network
        if type(policy) is not ActorCritic or type(network) is not ActorCriticNetwork:
            return False
        trunk = network.actor_trunk
        return (
            type(network.actor_output) is nn.Linear
            and not policy.state_size
            and type(policy.head) in (CategoricalHead, GaussianHead)
            and policy.inputs.structure == 0
            and type(policy.inputs.parts[0]) in (ObservationNormalizer, AsFloat)
            and type(trunk.encoder) is Encoder
            and type(trunk.mlp) is MLP
            and [type(module) for module in trunk.mlp] == [nn.Linear, nn.Tanh] * (len(trunk.mlp) // 2)
            and all(parameter.dtype == torch.float32 for parameter in policy.parameters())
        )

    def __call__(self, step: int, observations: Arrays, starts: Any, action_masks: Any = None) -> np.ndarray:
        """Return the environment's actions for a step."""
        with np.errstate(invalid="ignore"):  # the collector reports what environments return that is not finite
            return self._act(step, observations, action_masks)

    def _act(self, step: int, observations: np.ndarray, action_masks: np.ndarray | None) -> np.ndarray:
        x = observations.reshape(len(observations), -1)
        if self._normalizer is not None:
            scale, shift, clip, buffer = self._normalizer
            x = np.multiply(x, scale, out=buffer)
            x += shift
            np.minimum(x, clip, out=x)
            np.maximum(x, -clip, out=x)
        elif x.dtype != np.float32:
            x = x.astype(np.float32)
        for weight, bias, is_hidden, buffer in self._layers:
            x = np.matmul(x, weight, out=buffer)
            x += bias
            if is_hidden:
                np.tanh(x, out=x)
        if isinstance(self.head, CategoricalHead):
            if action_masks is not None:
                x = np.where(action_masks, x, np.float32(MASKED))
            x += self._noise[step]
            actions = x.argmax(-1, out=self._actions[step])
            return actions + self.head.start if self.head.start else actions
        actions = np.add(x, self._noise[step], out=self._actions[step])
        return self._to_env(actions)

    def _to_env(self, actions: np.ndarray) -> np.ndarray:
        assert isinstance(self.head, GaussianHead)
        center, half_range, low, high = self._bounds
        if not self.head.identity:
            actions = actions * half_range + center
        actions = np.minimum(actions.astype(low.dtype, copy=False), high)
        return np.maximum(actions, low, out=actions).reshape(-1, *self.head.space_shape)
