"""How actions are computed while collecting: by the policy itself, or by its arithmetic in NumPy for small networks.

For a small MLP on the CPU most of a torch call is overhead. `NumpyActor` computes the same action from the same
parameter memory in a third of the time. It decides actions only: distributions, log-probabilities and values of a
rollout are always the policy's own.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ppo.distributions import CategoricalHead, GaussianHead
from lightning_ppo.networks import MLP
from lightning_ppo.policy import ActorCritic


class Actor(Protocol):
    """Acts through one rollout.

    Attributes:
        actions: (T, N, ...), what was sampled so far, as the policy stores it.
    """

    actions: Tensor

    def __call__(self, step: int, observations: np.ndarray) -> np.ndarray:
        """Return the environment's actions (N, ...) for the observations (N, ...) of a step."""


def make_actor(policy: ActorCritic, shape: tuple[int, int], generator: torch.Generator) -> Actor:
    """Return the fastest actor for a rollout of shape (T, N), with its noise drawn from `generator`."""
    if generator.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and NumpyActor.suits(policy):
        return NumpyActor(policy, shape, generator)
    return TorchActor(policy, shape, generator)


class TorchActor:
    """Acts with `policy.act`, whatever the policy and its device.

    Args:
        policy: The policy.
        shape: (T, N).
        generator: Source of the noise, on the policy's device.
    """

    def __init__(self, policy: ActorCritic, shape: tuple[int, int], generator: torch.Generator) -> None:
        head = policy.head
        self.policy = policy
        self.noise = head.noise(shape, generator).unbind(0)
        self.actions = torch.empty((*shape, *head.action_shape), dtype=head.action_dtype, device=generator.device)

    def __call__(self, step: int, observations: np.ndarray) -> np.ndarray:
        """Return the environment's actions (N, ...) for the observations (N, ...) of a step."""
        actions = self.policy.act(torch.from_numpy(observations).to(self.actions.device), self.noise[step])
        self.actions[step] = actions
        return self.policy.head.to_env(actions).cpu().numpy()


class NumpyActor:
    """Acts with the arithmetic of `policy.act` written in NumPy, on views of the policy's own parameters.

    Args:
        policy: A policy that `suits`.
        shape: (T, N).
        generator: Source of the noise, on the CPU.
    """

    def __init__(self, policy: ActorCritic, shape: tuple[int, int], generator: torch.Generator) -> None:
        head, num_envs = policy.head, shape[1]
        self.head = head
        self.actions = torch.empty((*shape, *head.action_shape), dtype=head.action_dtype)
        self._actions = self.actions.numpy()
        self._noise = head.noise(shape, generator).numpy()
        hidden = [module for module in policy.actor_trunk if isinstance(module, nn.Linear)]
        self._layers = [
            (
                layer.weight.detach().numpy().T,
                layer.bias.detach().numpy(),
                layer is not policy.actor_output,
                np.empty((num_envs, layer.out_features), np.float32),
            )
            for layer in (*hidden, policy.actor_output)
        ]
        normalizer = policy.observation_normalizer
        self._normalizer = None
        if normalizer is not None:
            scale, shift = (value.numpy().reshape(1, -1) for value in (normalizer.scale, normalizer.shift))
            self._normalizer = (scale, shift, normalizer.clip, np.empty((num_envs, scale.size), np.float32))
        if isinstance(head, GaussianHead):
            self._noise = self._noise * head.log_std.detach().exp().numpy()
            self._bounds = tuple(b.numpy() for b in (head.center, head.half_range, head.low, head.high))

    @staticmethod
    def suits(policy: ActorCritic) -> bool:
        """Return whether the policy is a float32 MLP with tanh units and an action head known here."""
        trunk = policy.actor_trunk
        return (
            type(policy) is ActorCritic
            and type(policy.actor_output) is nn.Linear
            and type(policy.head) in (CategoricalHead, GaussianHead)
            and type(trunk) is MLP
            and [type(module) for module in trunk] == [nn.Linear, nn.Tanh] * (len(trunk) // 2)
            and all(parameter.dtype == torch.float32 for parameter in policy.parameters())
        )

    def __call__(self, step: int, observations: np.ndarray) -> np.ndarray:
        """Return the environment's actions (N, ...) for the observations (N, ...) of a step."""
        with np.errstate(invalid="ignore"):  # the collector reports what environments return that is not finite
            return self._act(step, observations)

    def _act(self, step: int, observations: np.ndarray) -> np.ndarray:
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
