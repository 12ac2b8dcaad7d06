"""The actor-critic: `act` for collecting, `evaluate` for learning, `value` for bootstrapping."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lightning_ppo.policy.batching import Batch
from lightning_ppo.policy.building import make_trunk, own_module, without_entries
from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.policy.inputs import Inputs
from lightning_ppo.policy.networks import ActorCriticNetwork, CustomNetwork, Encoder
from lightning_ppo.policy.normalization import RewardScaler
from lightning_ppo.rollout.shapes import Minibatch, Observations, Rollout, split
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import CORES, ENCODERS, PolicyConfig
from lightning_ppo.support.distributed import Reduce
from lightning_ppo.support.errors import ConfigError, one_line
from lightning_ppo.support.tree import tree_leaves, tree_map

EVALUATION_ROWS = 8192
"""Rows that go through the networks at once where a whole rollout does, at most."""
EVALUATION_NUMBERS = 2**23
"""Numbers in the observations of these rows, at most; of Atari's pictures 297 rows.

On a CPU 1,024 at once take 1.7 times as long, in memory that the system hands out anew each time."""


def _rows_at_once(observations: Observations) -> int:
    numbers = sum(leaf[0].numel() for leaf in tree_leaves(observations) if len(leaf))
    return max(1, min(EVALUATION_ROWS, EVALUATION_NUMBERS // max(1, numbers)))


class MaskedObservations(NamedTuple):
    """Observations (B, ...) and the choices (B, M) that are legal in them, a batch of `Trainer.predict`."""

    observations: Observations
    action_masks: Tensor


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

    Whatever the precision of the trunks, output layers and distribution are computed in that of the parameters.

    Attributes:
        inputs: What networks see of observations.
        head: The action distribution.
        network: Actor and critic.
        actor_keys: Entries of a Dict observation that the actor sees, where the critic sees more; None stands for all.
        state_size: H, numbers in the recurrent state of one environment; 0 for a policy without memory.
        version: Policy updates so far.

    Args:
        observation_space: What the environment shows.
        action_space: What it takes.
        policy: Network settings.
        normalize: Normalisation settings.

    Raises:
        UnsupportedSpaceError: If a space is not supported.
        ConfigError: If a setting does not go with the spaces, or a network of the user's own cannot be used.
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
        self.actor_keys: list[str] | None = None
        if policy.network is not None:
            self.head = make_action_head(action_space, policy.distribution, policy.log_std_init)
            arguments = (observation_space, self.head.num_outputs)
            self.network = CustomNetwork(own_module(policy.network, "policy.network", *arguments))
        else:
            actor_space, self.actor_keys = without_entries(observation_space, policy.critic_observation_keys)
            actor_trunk = make_trunk(self.inputs, actor_space, self.actor_keys, policy)
            critic_trunk = actor_trunk
            if not policy.shared_trunk:
                critic_trunk = make_trunk(self.inputs, observation_space, None, policy)
            features = actor_trunk.num_features
            self.head = make_action_head(action_space, policy.distribution, policy.log_std_init, features)
            repeats = self.head.num_features // features
            self.network = ActorCriticNetwork(actor_trunk, critic_trunk, self.head.num_outputs, repeats)
        self.state_size: int = self.network.state_size
        self.version = 0
        if policy.network or policy.encoder not in (None, *ENCODERS) or policy.core not in (None, *CORES):
            self._try_out()

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters, and of everything that is computed with them."""
        return next(self.parameters()).dtype

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
        """Return values (B,) of observations (B, ...), in chunks; see `Minibatch`."""
        count = len(tree_leaves(observations)[0])
        sequences = count if states is None else len(states)
        length = max(1, count // max(1, sequences))
        step = max(1, _rows_at_once(observations) // length)
        chunks = []
        for first in range(0, sequences, step):
            rows = slice(first * length, (first + step) * length)
            chunk = self.inputs(tree_map(lambda x, rows=rows: x[rows], observations))
            chosen = None if states is None else states[first : first + step]
            chunks.append(self.network.critic(chunk, chosen, None if starts is None else starts[rows]))
        return torch.cat(chunks)

    @torch.no_grad()
    def divergences(self, minibatch: Minibatch) -> Tensor:
        """Return the exact KL divergence (B,) of the behaviour policy from the current one, in eval mode."""
        with eval_mode(self):
            pieces = split(minibatch, _rows_at_once(minibatch.observations))
            return torch.cat([self._divergences(piece) for piece in pieces])

    def _divergences(self, piece: Minibatch) -> Tensor:
        now = self.distribution(piece.observations, piece.action_masks, piece.states, piece.starts)
        return self.head.kl(piece.distribution, now)

    @torch.no_grad()
    def evaluate_rollout(self, rollout: Rollout) -> tuple[Evaluation, Tensor]:
        """Return what the policy says of a rollout, each (T, N, ...), and values of its boundary observations (K,).

        Every row is evaluated by itself, from the recurrent state in which it was acted on.
        """
        zeros = torch.zeros_like(rollout.rewards)
        rows = replace(rollout, distribution=zeros, log_probs=zeros, values=zeros, advantages=zeros, returns=zeros)
        batch = rows.flatten()
        pieces = [self.evaluate(piece) for piece in split(batch, _rows_at_once(batch.observations))]
        joined = (torch.cat(parts).unflatten(0, zeros.shape) for parts in zip(*pieces, strict=True))
        return Evaluation(*joined), self._boundary_values(rollout)

    def lay_out(self, observations: Observations) -> Observations:
        """Return observations (T, N, ...), in memory as the built-in encoders read them fastest.

        Networks of a user's own get them as they are.
        """
        own = self.network
        trunks = (own.actor_trunk, own.critic_trunk) if isinstance(own, ActorCriticNetwork) else ()
        built_in = trunks and all(isinstance(trunk.encoder, Encoder) for trunk in trunks)
        return self.inputs.lay_out(observations) if built_in else observations

    @torch.no_grad()
    def rollout_values(self, rollout: Rollout, sequence_length: int = 1) -> tuple[Tensor, Tensor]:
        """Return the current values of a rollout's observations (T, N) and boundary observations (K,), in eval mode."""
        batch = rollout.flatten(sequence_length)
        with eval_mode(self):
            values = self.value(batch.observations, batch.states, batch.starts)
            return rollout.unflatten(values, sequence_length), self._boundary_values(rollout)

    def _boundary_values(self, rollout: Rollout) -> Tensor:
        starts = torch.zeros_like(rollout.boundary_rows, dtype=torch.bool)
        return self.value(rollout.boundary_observations, rollout.boundary_states, starts)

    def update_statistics(self, rollout: Rollout, reduce: Reduce) -> None:
        """Take the observations of a rollout into the normalisers' statistics, those that episodes ended with too.

        Args:
            rollout: What actor and critic saw.
            reduce: Sums a float64 tensor over all ranks.
        """
        if self.inputs.normalizers:
            self.inputs.update(rollout.observations, rollout.valid, reduce, rollout.final_observations())

    def initial_states(self, num_envs: int) -> Tensor | None:
        """Return the recurrent states (N, H) before the first step, or None for a policy without memory."""
        if not self.state_size:
            return None
        return next(self.parameters()).new_zeros(num_envs, self.state_size)

    @torch.no_grad()
    def step(
        self,
        observations: Any,
        states: Tensor | None = None,
        starts: Tensor | None = None,
        *,
        action_masks: Any = None,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, Tensor | None]:
        """Return actions as the environment takes them, (B, *space.shape), and the recurrent states that follow.

        The policy acts in eval mode. Observations and masks may be arrays instead of tensors, and a single one, without
        a batch; then the actions are so, too.

        Args:
            observations: (B, ...), of one step of B environments.
            states: (B, H), from the step before; None where there was none, or for a policy without memory.
            starts: (B,) bool, an episode starts with the observation; None where none does.
            action_masks: (B, M) bool, False for choices that must not be taken.
            deterministic: Return the mode instead of a sample.
            generator: Source of the noise of samples, on the policy's device.

        Raises:
            ConfigError: If the observations are not of the policy's space.
        """
        device = next(self.parameters()).device
        structure = self.inputs.structure
        if self.actor_keys is not None and not self.state_size:
            structure = {key: structure[key] for key in self.actor_keys}
        batch = Batch(observations, structure, self.inputs.leaves, device)
        masks = batch.masks(action_masks, self.head.num_choices, device)
        if states is None:
            states = self.initial_states(tree_leaves(batch.observations)[0].shape[0])
        if states is not None and starts is None:
            starts = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        with eval_mode(self):
            outputs, states = self._act(batch.observations, states, starts)
        distribution = self.head.parameters_of(outputs, masks)
        if deterministic:
            actions = self.head.mode(distribution)
        else:
            if generator is None:
                generator = torch.Generator(distribution.device)
                generator.seed()
            actions = self.head.sample(distribution, self.head.noise(tuple(distribution.shape[:-1]), generator))
        return batch.like_given(self.head.to_env(actions)), states

    def predict(
        self,
        observations: Any,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        action_masks: Any = None,
    ) -> Any:
        """Return actions as `step` does for observations (B, ...) that have no past."""
        return self.step(observations, action_masks=action_masks, deterministic=deterministic, generator=generator)[0]

    def _zeros(self, count: int) -> tuple[Any, Tensor | None]:
        """Return inputs of the network made of observations (count, ...) of zeros, and whether an episode starts."""
        leaves = self.inputs.leaves.values()
        batch = [torch.from_numpy(np.zeros((count, *(leaf.shape or ())), leaf.dtype)) for leaf in leaves]
        starts = None if not self.state_size else torch.arange(count) % 3 == 0
        return self.inputs(tree_map(batch.__getitem__, self.inputs.structure)), starts

    def shares_parameters(self) -> bool:
        """Return whether actor and critic have parameters in common."""
        with eval_mode(self):
            inputs, starts = self._zeros(2)
            outputs, values, _ = self.network(inputs, self.initial_states(2), starts)
        parameters = [p for p in self.parameters() if p.requires_grad]
        actors, critics = (
            torch.autograd.grad(x.sum(), parameters, retain_graph=True, allow_unused=True) for x in (outputs, values)
        )
        return any(a is not None and c is not None for a, c in zip(actors, critics, strict=True))

    @torch.no_grad()
    def _try_out(self) -> None:
        """Raise ConfigError if networks of the user's own do not give what is needed for observations of zeros.

        They get six or, if they have a memory, one each of two sequences, then three each.
        """
        states = self.initial_states(2)
        for count in (6,) if states is None else (2, 6):
            inputs, starts = self._zeros(count)
            try:
                with eval_mode(self):
                    outputs, values, after = self.network(inputs, states, starts)
            except Exception as error:
                text = f"{type(error).__name__}: {one_line(error)}"
                raise ConfigError(f"policy: the network fails on {count} observations: {text}") from error
            expected: list[tuple[str, Tensor | None, tuple[int, ...]]]
            expected = [("outputs", outputs, (count, self.head.num_outputs + self.head.num_features))]
            expected += [("values", values, (count,))]
            if count == 2 and states is not None:
                expected += [("states", after, tuple(states.shape))]
            for name, found, wanted in expected:
                if found is None or tuple(found.shape) != wanted:
                    shape = None if found is None else tuple(found.shape)
                    raise ConfigError(f"policy: the network gives {name} of shape {shape}, expected {wanted}")


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
