"""Encoders and the actor-critic network, with their initialisation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ppo.policy.images import ImageEncoder, NatureCNN
from lightning_ppo.policy.layers import MLP, orthogonal_
from lightning_ppo.policy.recurrence import full_precision, run_cores
from lightning_ppo.support.tree import tree_leaves


class Encoder(nn.Module):
    """Joins all parts of an observation: images through a CNN each, everything else as it is.

    Args:
        shapes: Shape of each part.
        images: Whether each part is an image.
        cnn: Encoder of images.
    """

    def __init__(
        self, shapes: Sequence[Sequence[int]], images: Sequence[bool], cnn: type[ImageEncoder] = NatureCNN
    ) -> None:
        super().__init__()
        cnns = [cnn(shape) if image else None for shape, image in zip(shapes, images, strict=True)]
        self.cnns = nn.ModuleList([cnn for cnn in cnns if cnn is not None])
        self._cnns = cnns
        sizes = [cnn.num_features if cnn else math.prod(s) for s, cnn in zip(shapes, cnns, strict=True)]
        self.num_features = sum(sizes)

    def forward(self, inputs: Any) -> Tensor:
        """Return features (B, num_features) of inputs (B, ...) in the structure of the observation space."""
        leaves = tree_leaves(inputs)
        parts = [cnn(x) if cnn else x.reshape(x.shape[0], -1) for x, cnn in zip(leaves, self._cnns, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Trunk(nn.Module):
    """Encoder, MLP and, if there is one, recurrent core: from inputs to features.

    Args:
        encoder: Takes inputs in the structure of the observation space, gives (B, num_features).
        mlp: Takes what the encoder gives.
        core: Takes sequences of what the MLP gives; see `RecurrentCore`.
        keys: Entries of a Dict observation that are used; None uses all.
    """

    def __init__(
        self, encoder: nn.Module, mlp: MLP, core: nn.Module | None = None, keys: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.mlp, self.core, self.keys = encoder, mlp, core, keys
        self.num_features: Any = mlp.num_features if core is None else core.num_features
        self.state_size: Any = 0 if core is None else core.state_size

    def forward(self, inputs: Any) -> Tensor:
        """Return what the core takes, or the features (B, num_features) where there is none, of inputs (B, ...)."""
        if self.keys is not None:
            inputs = {key: inputs[key] for key in self.keys}
        return self.mlp(self.encoder(inputs))


class ActorCriticNetwork(nn.Module):
    """Actor and critic with a trunk each or one for both; the output layers are never computed in half precision.

    Args:
        actor_trunk: Trunk of the actor.
        critic_trunk: Trunk of the critic; may be the actor's.
        num_outputs: Outputs of the actor.
        append_features: How often the actor's features are appended to its outputs.
    """

    def __init__(self, actor_trunk: Trunk, critic_trunk: Trunk, num_outputs: int, append_features: int = 0) -> None:
        super().__init__()
        self.actor_trunk, self.critic_trunk = actor_trunk, critic_trunk
        # a near-zero policy head starts close to the uniform distribution (Andrychowicz et al. 2021, section 3.2)
        self.actor_output = orthogonal_(nn.Linear(actor_trunk.num_features, num_outputs), 0.01)
        self.critic_output = orthogonal_(nn.Linear(critic_trunk.num_features, 1), 1.0)
        self.append_features = append_features
        self.shared = critic_trunk is actor_trunk
        self.state_size = actor_trunk.state_size + (0 if self.shared else critic_trunk.state_size)

    def _features(
        self, trunks: Sequence[Trunk], inputs: Any, states: Tensor | None, starts: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the features (B, num_features) of trunks, given their states, and the states after single steps."""
        features = [trunk(inputs) for trunk in trunks]
        if states is None or starts is None:
            return features, None
        return run_cores([trunk.core for trunk in trunks], features, states, starts)

    def _outputs(self, features: Tensor) -> Tensor:
        outputs = _output(self.actor_output, features)
        if not self.append_features:
            return outputs
        return torch.cat((outputs, *[full_precision(features)] * self.append_features), -1)

    def _values(self, features: Tensor) -> Tensor:
        return _output(self.critic_output, features).squeeze(-1)

    def actor(self, inputs: Any, states: Tensor | None, starts: Tensor | None) -> Tensor:
        """Return the actor's outputs (B, num_outputs) alone."""
        own = None if states is None else states[:, : self.actor_trunk.state_size]
        return self._outputs(self._features([self.actor_trunk], inputs, own, starts)[0][0])

    def critic(self, inputs: Any, states: Tensor | None, starts: Tensor | None) -> Tensor:
        """Return values (B,) alone."""
        own = None if states is None else states[:, -self.critic_trunk.state_size :]
        return self._values(self._features([self.critic_trunk], inputs, own, starts)[0][0])

    def forward(
        self, inputs: Any, states: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the actor's outputs (B, num_outputs), values (B,) and the states after single steps.

        Args:
            inputs: (B, ...), S sequences of L = B / S steps, one after the other.
            states: (S, state_size), or None without a core.
            starts: (B,) bool, or None without a core.
        """
        trunks = [self.actor_trunk] if self.shared else [self.actor_trunk, self.critic_trunk]
        features, states = self._features(trunks, inputs, states, starts)
        return self._outputs(features[0]), self._values(features[-1]), states


class CustomNetwork(nn.Module):
    """A custom actor-critic.

    Without recurrence its `forward(inputs)` returns outputs (B, num_outputs) and values (B,). With an attribute
    `state_size` above 0 its `forward(inputs, states, starts)` takes sequences and returns the states
    that follow single steps as well; setting the state to zero where an episode starts is then its business.

    Args:
        network: The user's module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.state_size = int(getattr(network, "state_size", 0))

    def forward(
        self, inputs: Any, states: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return outputs (B, num_outputs), values (B,) and states, none in half precision."""
        if self.state_size:
            outputs, values, states = self.network(inputs, states, starts)
            return full_precision(outputs), full_precision(values), None if states is None else full_precision(states)
        outputs, values = self.network(inputs)
        return full_precision(outputs), full_precision(values), None

    def actor(self, inputs: Any, states: Tensor | None, starts: Tensor | None) -> Tensor:
        """Return the outputs alone."""
        return self(inputs, states, starts)[0]

    def critic(self, inputs: Any, states: Tensor | None, starts: Tensor | None) -> Tensor:
        """Return the values alone."""
        return self(inputs, states, starts)[1]


def _output(layer: nn.Linear, features: Tensor) -> Tensor:
    features = full_precision(features)
    if features.dtype == layer.weight.dtype and not torch.is_autocast_enabled(features.device.type):
        return layer(features)
    with torch.autocast(features.device.type, enabled=False):
        return nn.functional.linear(features, full_precision(layer.weight), full_precision(layer.bias))
