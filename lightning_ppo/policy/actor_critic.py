"""The actor-critic: `act` for collecting, `evaluate` for learning, `value` for bootstrapping."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn

from lightning_ppo.policy.batching import Batching
from lightning_ppo.policy.building import brings_networks, build_networks
from lightning_ppo.policy.inputs import Inputs
from lightning_ppo.policy.modes import eval_mode
from lightning_ppo.policy.networks import ActorCriticNetwork, Encoder
from lightning_ppo.policy.normalization import RewardScaler
from lightning_ppo.policy.probing import try_out
from lightning_ppo.rollout.shapes import Minibatch, Observations, Rollout
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.distributed import Reduce
from lightning_ppo.support.tree import tree_leaves


class MaskedObservations(NamedTuple):
    """Observations (B, ...) and the choices (B, M) that are legal in them, a batch of `Trainer.predict`."""

    observations: Observations
    action_masks: Tensor


class Evaluation(NamedTuple):
    """Outputs of the current policy for B transitions."""

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

    Whatever the precision of the trunks, output layers and distribution are computed in that of the parameters.

    Attributes:
        inputs: Turns observations into the inputs of the networks.
        head: The action distribution.
        network: Actor and critic.
        actor_keys: Entries of a Dict observation that the actor sees, if the critic sees more; None means all.
        state_size: H, numbers in the recurrent state of one environment; 0 for a policy without memory.
        version: Policy updates so far.
        whole_weights: Makes a context in which all weights are here, where ranks share them out (`update/sharding`).
        rows_at_once: Rows of whole rollouts that are evaluated at once, at most; None leaves it to `scoring`.

    Args:
        observation_space: Of one environment.
        action_space: Of one environment.
        policy: Network settings.
        normalize: Normalisation settings.

    Raises:
        UnsupportedSpaceError: If a space is not supported.
        ConfigError: If a setting does not fit the spaces, or a custom network cannot be used.
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
        self.inputs = Inputs(observation_space, normalize)
        self.reward_scaler = RewardScaler(normalize.reward_clip, normalize.epsilon) if normalize.rewards else None
        self.network: Any
        self.head, self.network, self.actor_keys = build_networks(self.inputs, observation_space, action_space, policy)
        self.state_size: int = self.network.state_size
        self.action_space = action_space
        seen = observation_space
        if self.actor_keys is not None and not self.state_size and isinstance(seen, spaces.Dict):
            seen = spaces.Dict([(key, seen[key]) for key in self.actor_keys])
        self._batching = Batching(seen)
        self.version = 0
        self.rows_at_once: int | None = None
        self.whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext
        if brings_networks(policy):
            try_out(self)

    def through(self, function: Callable[[], Any]) -> Any:
        """Return what a function of the policy returns; this is what gathers weights that ranks share out."""
        return function()

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters that are trained, and of everything that is computed with them."""
        return next((p for p in self.parameters() if p.requires_grad), next(self.parameters())).dtype

    def act(
        self,
        observations: Observations,
        noise: Tensor,
        action_masks: Tensor | None = None,
        states: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return sampled actions (B, *action_shape) and the recurrent states (B, H) that follow.

        Args:
            observations: (B, ...), of one step of B environments.
            noise: (B, num_noise).
            action_masks: (B, M) bool, or None.
            states: (B, H), or None for a policy without memory.
            starts: (B,) bool, an episode starts with the observation, or None for a policy without memory.
        """
        outputs, states = self._act(observations, states, starts)
        return self.head.sample(self.head.parameters_of(outputs, action_masks), noise), states

    def _act(
        self, observations: Observations, states: Tensor | None, starts: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if not self.state_size:
            return self.network.actor(self.inputs(observations, self.actor_keys), None, None), None
        outputs, _, states = self.network(self.inputs(observations), states, starts)
        return outputs, states

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """Return distribution, log-probabilities, entropies and values of B transitions."""
        inputs = self.inputs(minibatch.observations)
        outputs, values, _ = self.network(inputs, minibatch.states, minibatch.starts)
        distribution = self.head.parameters_of(outputs, minibatch.action_masks)
        return Evaluation(
            distribution,
            self.head.log_prob(distribution, minibatch.actions),
            self.head.entropy(distribution),
            values,
        )

    def distribution(
        self,
        observations: Observations,
        action_masks: Tensor | None = None,
        states: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Return the action distribution's parameters (B, P) for observations (B, ...); see `Minibatch`."""
        outputs = self.network.actor(self.inputs(observations, self.actor_keys), states, starts)
        return self.head.parameters_of(outputs, action_masks)

    def value(self, observations: Observations, states: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """Return values (B,) of observations (B, ...); see `Minibatch`."""
        return self.network.critic(self.inputs(observations), states, starts)

    def lay_out(self, observations: Observations) -> Observations:
        """Return observations (T, N, ...), in memory as the built-in encoders read them fastest.

        Custom networks get them unchanged.
        """
        own = self.network
        trunks = (own.actor_trunk, own.critic_trunk) if isinstance(own, ActorCriticNetwork) else ()
        built_in = trunks and all(isinstance(trunk.encoder, Encoder) for trunk in trunks)
        return self.inputs.lay_out(observations) if built_in else observations

    def update_statistics(self, rollout: Rollout, reduce: Reduce) -> None:
        """Take the observations of a rollout into the normalisers' statistics, those that episodes ended with too.

        Args:
            rollout: The rollout.
            reduce: Sums a float64 tensor over all ranks.
        """
        if self.inputs.normalizers:
            self.inputs.update(rollout.observations, rollout.valid, reduce, rollout.final_observations())

    def initial_states(self, num_envs: int) -> Tensor | None:
        """Return the recurrent states (N, H) before the first step, or None for a policy without memory."""
        if not self.state_size:
            return None
        device = next(self.parameters()).device
        return torch.zeros(num_envs, self.state_size, dtype=self.dtype, device=device)

    @torch.no_grad()
    def step(
        self,
        observations: Observations,
        states: Tensor | None = None,
        starts: Tensor | None = None,
        *,
        action_masks: Tensor | None = None,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, Tensor | None]:
        """Return actions as the environment takes them, (B, *space.shape), and the recurrent states that follow.

        The policy acts in eval mode, on tensors that lie where it does and that nobody checks; `predict` takes others.

        Args:
            observations: (B, ...), of one step of B environments.
            states: (B, H), from the step before; None where there was none, or for a policy without memory.
            starts: (B,) bool, an episode starts with the observation; None where none does.
            action_masks: (B, M) bool, False for choices that must not be taken.
            deterministic: Return the mode instead of a sample.
            generator: Source of the noise of samples, on the policy's device.
        """
        if states is None:
            states = self.initial_states(tree_leaves(observations)[0].shape[0])
        if states is not None and starts is None:
            starts = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        with eval_mode(self):
            outputs, states = self._act(observations, states, starts)
        distribution = self.head.parameters_of(outputs, action_masks)
        if deterministic:
            actions = self.head.mode(distribution)
        else:
            if generator is None:
                generator = torch.Generator(distribution.device)
                generator.seed()
            actions = self.head.sample(distribution, self.head.noise(tuple(distribution.shape[:-1]), generator))
        return self.head.to_env(actions), states

    def predict(
        self,
        observations: Any,
        state: Any = None,
        starts: Any = None,
        action_masks: Any = None,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, Any]:
        """Return actions and the memory that follows, as `step` does, of anything that an environment shows.

        Arrays, tensors and Python numbers are taken, nested in dicts and tuples, of one environment or of B of them.
        What is returned is of the same kind, for as many.

        Args:
            observations: (B, ...) or (...).
            state: (B, H) or (H,), what was returned with the actions before; None before the first.
            starts: (B,) or one bool, an episode starts with the observation; None where none does.
            action_masks: (B, M) or (M,), or as the environment gives them; True or 1 for choices that may be taken.
            deterministic: Return the mode instead of a sample.
            generator: Source of the noise of samples, on the policy's device; None draws other ones each time.

        Raises:
            ConfigError: If an argument is not of the policy's spaces.
        """
        batch = self._batching.read(observations, next(self.parameters()).device)
        actions, states = self.step(
            batch.observations,
            batch.states(state, self.initial_states(batch.count)),
            batch.starts(starts),
            action_masks=batch.masks(action_masks, self.action_space, self.head.num_choices),
            deterministic=deterministic,
            generator=generator,
        )
        return batch.like_given(actions), None if states is None else batch.like_given(states)
