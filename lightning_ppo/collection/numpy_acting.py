"""Acting in NumPy, for small networks on the CPU."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.policy.distributions import MASKED, CategoricalHead, GaussianHead, StateGaussianHead
from lightning_ppo.policy.inputs import AsFloat
from lightning_ppo.policy.layers import MLP
from lightning_ppo.policy.networks import ActorCriticNetwork, Encoder, Trunk
from lightning_ppo.policy.normalization import ObservationNormalizer
from lightning_ppo.policy.recurrence import RecurrentCore

Arrays = Any
"""An array, or nested dicts and tuples of arrays."""


def _tanh(x: np.ndarray) -> None:
    np.tanh(x, out=x)


def _relu(x: np.ndarray) -> None:
    np.maximum(x, 0.0, out=x)


def _elu(x: np.ndarray) -> None:
    np.copyto(x, np.expm1(np.minimum(x, 0.0)), where=x < 0.0)


def _silu(x: np.ndarray) -> None:
    x *= 0.5 * np.tanh(0.5 * x) + 0.5  # the logistic function


_IN_PLACE: dict[type[nn.Module] | None, Callable[[np.ndarray], None]] = {
    nn.Tanh: _tanh,
    nn.ReLU: _relu,
    nn.ELU: _elu,
    nn.SiLU: _silu,
}


_Layer = tuple[nn.Linear, nn.LayerNorm | None]


def _layers(mlp: MLP) -> tuple[list[_Layer], Callable[[np.ndarray], None]] | None:
    """Return the layers of an MLP and the activation after each, in eval mode; None if they are others."""
    modules = [module for module in mlp if type(module) is not nn.Dropout]
    width = 3 if any(type(module) is nn.LayerNorm for module in modules) else 2
    linear = [module for module in modules[::width] if type(module) is nn.Linear]
    norms = [module for module in modules[1::width] if type(module) is nn.LayerNorm and module.bias is not None]
    activations = modules[width - 1 :: width]
    kinds = {type(module) if getattr(module, "alpha", 1.0) == 1.0 else None for module in activations}  # of ELU
    found = len(linear) + len(norms) + len(activations)
    if len(modules) % width or found != len(modules) or len(kinds) > 1 or not kinds <= set(_IN_PLACE):
        return None
    return [*zip_longest(linear, norms)], _IN_PLACE[(kinds or {nn.Tanh}).pop()]


def _array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array: its memory, or a copy where it is on another device."""
    return tensor.detach().cpu().numpy()


def _normalize(x: np.ndarray, epsilon: float, weight: np.ndarray, bias: np.ndarray) -> None:
    """Apply LayerNorm to the rows of x (N, F), in place."""
    x -= x.mean(1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(1, keepdims=True) + np.float32(epsilon))
    x *= weight
    x += bias


class _NumpyLayers:
    """Linear layers in NumPy, with what comes after each.

    Args:
        layers: The layers, each with its LayerNorm or None.
        num_envs: N.
        activate: Applies the activation function in place; None for none.
    """

    def __init__(
        self, layers: Sequence[_Layer], num_envs: int, activate: Callable[[np.ndarray], None] | None = None
    ) -> None:
        self._activate = activate
        self._layers = [
            (
                _array(layer.weight).T,
                _array(layer.bias),
                np.empty((num_envs, layer.out_features), np.float32),
                None if norm is None else (norm.eps, _array(norm.weight), _array(norm.bias)),
            )
            for layer, norm in layers
        ]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the output of the layers for x (N, I), valid until the next call."""
        for weight, bias, buffer, norm in self._layers:
            x = np.matmul(x, weight, out=buffer)
            x += bias
            if norm is not None:
                _normalize(x, *norm)
            if self._activate is not None:
                self._activate(x)
        return x


class _NumpyCore:
    """A step of an LSTM or GRU in NumPy; a logistic function is .5 tanh(x / 2) + .5.

    Args:
        core: The core.
    """

    def __init__(self, core: RecurrentCore) -> None:
        weights = (_array(weight) for weight in core.cell.all)
        self._w_x, self._w_h, self._b_x, self._b_h = weights
        self._size, self.state_size = core.num_features, core.state_size
        # of the gates i, f, g, o
        self._scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), self._size)
        self._shift = np.repeat(np.array([0.5, 0.5, 0.0, 0.5], np.float32), self._size)
        self._step = self._lstm if core.kind == "lstm" else self._gru

    def __call__(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return outputs (N, F) and the states (N, H) after a step, of inputs (N, I) and the states before it."""
        return self._step(x @ self._w_x.T + self._b_x, state)

    def _lstm(self, gates: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self._size
        gates += state[:, :size] @ self._w_h.T
        gates += self._b_h
        gates *= self._scale
        np.tanh(gates, out=gates)
        gates *= self._scale
        gates += self._shift
        after = np.empty_like(state)
        hidden, cell = after[:, :size], after[:, size:]
        np.multiply(gates[:, size : 2 * size], state[:, size:], out=cell)
        cell += gates[:, :size] * gates[:, 2 * size : 3 * size]
        np.multiply(gates[:, 3 * size :], np.tanh(cell), out=hidden)
        return hidden, after

    def _gru(self, gates: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self._size
        added = state @ self._w_h.T + self._b_h
        r_and_z, n = gates[:, : 2 * size], gates[:, 2 * size :]
        r_and_z += added[:, : 2 * size]
        r_and_z *= 0.5
        np.tanh(r_and_z, out=r_and_z)
        r_and_z *= 0.5
        r_and_z += 0.5
        n += r_and_z[:, :size] * added[:, 2 * size :]
        np.tanh(n, out=n)
        after = state - n
        after *= r_and_z[:, size:]
        after += n  # (1 - z) n + z h
        return after, after


class NumpyActor:
    """Acts with the arithmetic of `policy.act` written in NumPy, on views of the policy's own parameters.

    Of a policy on another device it takes copies.

    Args:
        policy: A policy that `suits`.
        shape: (T, N).
        generator: Source of the noise, on the policy's device.
        state: (N, H), recurrent states before the first step, or None for a policy without memory.
    """

    def __init__(
        self, policy: ActorCritic, shape: tuple[int, int], generator: torch.Generator, state: Tensor | None = None
    ) -> None:
        head, network, num_envs = policy.head, policy.network, shape[1]
        self.device = torch.device("cpu")
        self.head = head
        self.state = None if state is None else state.cpu()
        self.states = None if self.state is None else self.state.new_empty(*shape, self.state.shape[-1])
        self.actions = torch.empty((*shape, *head.action_shape), dtype=head.action_dtype)
        self._actions = self.actions.numpy()
        self._noise = _array(head.noise(shape, generator))
        trunks = _acting_trunks(network)
        found = [layers for trunk in trunks if (layers := _layers(trunk.mlp)) is not None]
        self._trunks = [_NumpyLayers(layers, num_envs, activate) for layers, activate in found]
        self._cores = [_NumpyCore(trunk.core) for trunk in trunks if isinstance(trunk.core, RecurrentCore)]
        self._output = _NumpyLayers([(network.actor_output, None)], num_envs)
        normalizer = policy.inputs.parts[0]
        self._normalizer = None
        if isinstance(normalizer, ObservationNormalizer):
            buffers = normalizer.offset, normalizer.scale, normalizer.shift
            offset, scale, shift = (_array(value).reshape(1, -1) for value in buffers)
            self._normalizer = offset, scale, shift, normalizer.clip, np.empty((num_envs, scale.size), np.float32)
        if isinstance(head, GaussianHead):
            self._log_std = _array(head.log_std)
            if not isinstance(head, StateGaussianHead):
                self._noise = self._noise * np.exp(self._log_std)
            self._bounds = tuple(_array(b) for b in (head.center, head.half_range, head.low, head.high))

    @staticmethod
    def suits(policy: ActorCritic) -> bool:
        """Return whether the policy is a float32 MLP on one Box, and its activation and action head are known here.

        An LSTM or GRU may follow the MLP.
        """
        network = policy.network
        if type(policy) is not ActorCritic or type(network) is not ActorCriticNetwork:
            return False
        return (
            type(network.actor_output) is nn.Linear
            and type(policy.head) in (CategoricalHead, GaussianHead, StateGaussianHead)
            and policy.inputs.structure == 0
            and type(policy.inputs.parts[0]) in (ObservationNormalizer, AsFloat)
            and all(
                type(trunk.encoder) is Encoder
                and type(trunk.mlp) is MLP
                and _layers(trunk.mlp) is not None
                and (trunk.core is None or type(trunk.core) is RecurrentCore)
                for trunk in _acting_trunks(network)
            )
            and all(parameter.dtype == torch.float32 for parameter in policy.parameters())
        )

    def __call__(self, step: int, observations: Arrays, starts: Any, action_masks: Any = None) -> np.ndarray:
        """Return the environment's actions for a step."""
        with np.errstate(invalid="ignore"):  # the collector reports what environments return that is not finite
            return self._act(step, observations, starts, action_masks)

    def _act(
        self, step: int, observations: np.ndarray, starts: np.ndarray, action_masks: np.ndarray | None
    ) -> np.ndarray:
        x = observations.reshape(len(observations), -1)
        if self._normalizer is not None:
            offset, scale, shift, clip, buffer = self._normalizer
            x = np.subtract(x, offset, out=buffer)
            x *= scale
            x += shift
            np.minimum(x, clip, out=x)
            np.maximum(x, -clip, out=x)
        elif x.dtype != np.float32:
            x = x.astype(np.float32)
        features = [layers(x) for layers in self._trunks]
        if self.states is not None and self.state is not None:
            self.states[step] = self.state
            states = np.where(starts[:, None], np.float32(0.0), self.state.numpy())
            after, first = [], 0
            for number, core in enumerate(self._cores):
                features[number], state = core(features[number], states[:, first : first + core.state_size])
                after.append(state)
                first += core.state_size
            self.state = torch.from_numpy(np.concatenate(after, 1))
        x = self._output(features[0])
        if isinstance(self.head, CategoricalHead):
            if action_masks is not None:
                x = np.where(action_masks, x, np.float32(MASKED))
            x += self._noise[step]
            actions = x.argmax(-1, out=self._actions[step])
            return actions + self.head.start
        noise = self._noise[step]
        if isinstance(self.head, StateGaussianHead):
            x, log_std = x[:, : self.head.size], x[:, self.head.size :]
            noise = noise * np.exp(np.clip(log_std + self._log_std, *self.head.log_std_bounds))
        return self._to_env(np.add(x, noise, out=self._actions[step]))

    def _to_env(self, actions: np.ndarray) -> np.ndarray:
        assert isinstance(self.head, GaussianHead)
        center, half_range, low, high = self._bounds
        if not self.head.identity:
            actions = actions * half_range + center
        actions = np.minimum(actions.astype(low.dtype, copy=False), high)
        return np.maximum(actions, low, out=actions).reshape(-1, *self.head.space_shape)


def _acting_trunks(network: ActorCriticNetwork) -> list[Trunk]:
    """Return the trunks that acting computes: the actor's, and the critic's where it has a state to carry on."""
    alone = network.shared or not network.state_size
    return [network.actor_trunk] if alone else [network.actor_trunk, network.critic_trunk]
