"""The actor-critic: `act` for collecting, `evaluate` for learning, `value` for bootstrapping."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.config import NormalizeConfig, PolicyConfig
from lightning_ppo.distributions import make_action_head
from lightning_ppo.errors import UnsupportedSpaceError
from lightning_ppo.networks import MLP, orthogonal_
from lightning_ppo.normalization import ObservationNormalizer, Reduce, RewardScaler
from lightning_ppo.rollout import Observations, Rollout

EVALUATION_ROWS = 8192
"""Rows that go through the networks at once where a whole rollout does."""


class Evaluation(NamedTuple):
    """What the current policy says of B observed transitions."""

    distribution: Tensor
    """(B, P), parameters of the action distribution."""
    log_probs: Tensor
    """(B,)."""
    entropies: Tensor
    """(B,), in nats."""
    values: Tensor
    """(B,)."""


class ActorCritic(nn.Module):
    """Policy and value function of one agent, with the statistics that normalise its inputs.

    Whatever the precision of the trunks, the heads and the distribution are computed in float32.

    Args:
        observation_space: What the environment shows; a Box.
        action_space: What it takes; a Discrete or floating-point Box.
        policy: Network settings.
        normalize: Normalisation settings.

    Raises:
        UnsupportedSpaceError: If a space is not supported.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        policy: PolicyConfig | None = None,
        normalize: NormalizeConfig | None = None,
    ) -> None:
        super().__init__()
        policy, normalize = policy or PolicyConfig(), normalize or NormalizeConfig()
        if not isinstance(observation_space, spaces.Box) or observation_space.shape == ():
            raise UnsupportedSpaceError(
                f"observation space {observation_space} is not supported; supported is Box with at least one dimension"
            )
        self.observation_shape = observation_space.shape
        num_inputs = int(np.prod(observation_space.shape))
        self.head = make_action_head(action_space, policy.log_std_init)
        self.observation_normalizer = (
            ObservationNormalizer(observation_space.shape, normalize.observation_clip, normalize.epsilon)
            if normalize.observations
            else None
        )
        self.reward_scaler = RewardScaler(normalize.reward_clip, normalize.epsilon) if normalize.rewards else None
        trunk = (num_inputs, policy.hidden_sizes, policy.activation, policy.dropout)
        self.actor_trunk = MLP(*trunk)
        self.critic_trunk = self.actor_trunk if policy.shared_trunk else MLP(*trunk)
        # a near-zero policy head starts close to the uniform distribution (Andrychowicz et al. 2021, section 3.2)
        self.actor_output = orthogonal_(nn.Linear(self.actor_trunk.num_features, self.head.num_outputs), 0.01)
        self.critic_output = orthogonal_(nn.Linear(self.critic_trunk.num_features, 1), 1.0)
        self.version = 0
        """Policy updates so far."""

    def _inputs(self, observations: Observations) -> Tensor:
        assert isinstance(observations, Tensor)
        inputs = observations if observations.dtype == torch.float32 else observations.float()
        if self.observation_normalizer is not None:
            inputs = self.observation_normalizer(inputs)
        return inputs if inputs.dim() == 2 else inputs.flatten(1)

    def _distribution(self, features: Tensor) -> Tensor:
        return self.head.parameters_of(_full_precision(self.actor_output, features))

    def _values(self, features: Tensor) -> Tensor:
        return _full_precision(self.critic_output, features).squeeze(-1)

    def distribution(self, observations: Observations) -> Tensor:
        """Return the action distribution's parameters (B, P) for observations (B, ...)."""
        return self._distribution(self.actor_trunk(self._inputs(observations)))

    def act(self, observations: Observations, noise: Tensor) -> Tensor:
        """Return sampled actions (B, *action_shape) for observations (B, ...) and noise (B, num_noise)."""
        return self.head.sample(self.distribution(observations), noise)

    def evaluate(self, observations: Observations, actions: Tensor) -> Evaluation:
        """Return distribution, log-probabilities, entropies and values of B transitions."""
        inputs = self._inputs(observations)
        actor_features = self.actor_trunk(inputs)
        shared = self.critic_trunk is self.actor_trunk
        critic_features = actor_features if shared else self.critic_trunk(inputs)
        distribution = self._distribution(actor_features)
        return Evaluation(
            distribution,
            self.head.log_prob(distribution, actions),
            self.head.entropy(distribution),
            self._values(critic_features),
        )

    def value(self, observations: Observations) -> Tensor:
        """Return values (B,) of observations (B, ...), in chunks of EVALUATION_ROWS."""
        assert isinstance(observations, Tensor)
        chunks = observations.split(EVALUATION_ROWS)
        return torch.cat([self._values(self.critic_trunk(self._inputs(chunk))) for chunk in chunks])

    @torch.no_grad()
    def divergences(self, observations: Observations, distribution: Tensor) -> Tensor:
        """Return the exact KL divergence (B,) of given distributions (B, P) from the current ones, in eval mode."""
        with eval_mode(self):
            return self.head.kl(distribution, self.distribution(observations))

    @torch.no_grad()
    def rollout_values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return the current values of a rollout's observations (T, N) and boundary observations (K,), in eval mode."""
        assert isinstance(rollout.observations, Tensor)
        with eval_mode(self):
            values = self.value(rollout.observations.flatten(0, 1)).view(rollout.values.shape)
            return values, self.value(rollout.boundary_observations)

    def update_statistics(self, observations: Observations, valid: Tensor, reduce: Reduce) -> None:
        """Take observations (T, N, ...) into the normaliser's statistics, those of valid (T, N) rows.

        Args:
            observations: What the policy saw.
            valid: Which rows are transitions.
            reduce: Sums a float64 tensor over all ranks.
        """
        assert isinstance(observations, Tensor)
        if self.observation_normalizer is not None:
            self.observation_normalizer.update(observations[valid], reduce)

    @torch.no_grad()
    def predict(
        self, observations: Observations, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return actions as the environment takes them, (B, *space.shape), for observations (B, ...), in eval mode.

        Args:
            observations: A batch of observations.
            deterministic: Return the mode instead of a sample.
            generator: Source of the noise of samples, on the policy's device.
        """
        with eval_mode(self):
            distribution = self.distribution(observations)
        if deterministic:
            return self.head.to_env(self.head.mode(distribution))
        if generator is None:
            generator = torch.Generator(distribution.device)
            generator.seed()
        noise = self.head.noise(tuple(distribution.shape[:-1]), generator)
        return self.head.to_env(self.head.sample(distribution, noise))


@contextmanager
def eval_mode(policy: nn.Module) -> Iterator[None]:
    """Put a policy in eval mode and every submodule back into its own mode afterwards.

    Rollouts and evaluations must neither drop units out nor move the statistics of batch normalisation.
    """
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _full_precision(layer: nn.Linear, features: Tensor) -> Tensor:
    if features.dtype == torch.float32 and not torch.is_autocast_enabled(features.device.type):
        return layer(features)
    with torch.autocast(features.device.type, enabled=False):
        return torch.nn.functional.linear(features.float(), layer.weight.float(), layer.bias.float())
