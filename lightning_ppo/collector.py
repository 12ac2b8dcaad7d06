"""Step a vector environment T times with a policy and return the rollout; owns the environments and episode records."""

import time
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from lightning_ppo.acting import make_actor
from lightning_ppo.advantages import following_values
from lightning_ppo.envs.stepper import VectorStepper, check_finite, check_rollout
from lightning_ppo.episodes import EpisodeRecorder
from lightning_ppo.errors import EnvironmentFault
from lightning_ppo.policy import ActorCritic, eval_mode
from lightning_ppo.rollout import Rollout
from lightning_ppo.tree import tree_map, tree_store


class Collector:
    """Collects rollouts of T steps from N environments.

    A step of acting computes nothing but the action (see `acting`). Distributions, log-probabilities and values of the
    whole rollout are computed afterwards in one batch, by the method that also computes them for the update.

    Args:
        env: The vector environment.
        policy: Acts; not copied, so that every rollout is collected with its current weights.
        num_steps: T.
        generator: Source of action noise, on the policy's device.
        seeds: One seed per environment for the first reset.
        action_mask: Where action masks come from, see `EnvConfig.action_mask`.
        skip_first: Do not report the first episode of each environment, which may have been cut short.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: ActorCritic,
        num_steps: int,
        generator: torch.Generator,
        seeds: list[int],
        action_mask: str = "auto",
        skip_first: bool = False,
    ) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.generator = generator
        self.stepper = VectorStepper(env, action_mask)
        self.episodes = EpisodeRecorder(env.num_envs, skip_first)
        self.state = policy.initial_states(env.num_envs)
        self.stepper.reset(seeds)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Return the next rollout, collected with the policy as it is now, in eval mode.

        Raises:
            EnvironmentFault: If the environment raises, or returns a wrong shape, a NaN or an infinity.
        """
        with eval_mode(self.policy):
            return self._collect()

    def _collect(self) -> Rollout:
        started = time.perf_counter()
        stepper, num_steps = self.stepper, self.num_steps
        device, shape = self.generator.device, (self.num_steps, self.stepper.env.num_envs)
        observations = tree_map(lambda x: np.empty((num_steps, *x.shape), dtype=_stored(x)), stepper.observations)
        rewards = np.empty(shape, dtype=np.float64)
        terminations, truncations = np.empty(shape, dtype=np.bool_), np.empty(shape, dtype=np.bool_)
        starts, valid = np.empty(shape, dtype=np.bool_), np.ones(shape, dtype=np.bool_)
        masks = None if stepper.action_masks is None else np.empty((*shape, stepper.action_masks.shape[-1]), np.bool_)
        finals: list[tuple[int, int, Any]] = []
        actor = make_actor(self.policy, shape, self.generator, self.state)
        first_step = stepper.num_steps
        try:
            for t in range(num_steps):
                row = tree_store(observations, t, stepper.observations)
                starts[t] = stepper.starts
                if masks is not None:
                    masks[t] = stepper.action_masks
                actions = actor(t, row, starts[t], None if masks is None else masks[t])
                rewards[t], terminations[t], truncations[t] = stepper.step(actions)
                if stepper.any_filler:
                    valid[t] = ~stepper.filler
                if stepper.final_observations:
                    finals += [(t, i, final) for i, final in stepper.final_observations.items()]
        except EnvironmentFault:
            check_finite(tree_map(lambda x: x[: t + 1], observations), rewards[:t], first_step)
            raise
        ended = terminations | truncations
        # an episode cut off at a filler row, where its environment was replaced, had its last step in the row before
        truncations[:-1] |= truncations[1:] & ~valid[1:]
        boundary, rows = self._boundary(observations, finals)
        check_rollout(observations, boundary, rows, rewards, first_step)
        self.state = actor.state

        def tensor(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x).to(device)

        rollout = Rollout(
            observations=tree_map(tensor, observations),
            actions=actor.actions,
            distribution=torch.empty(0),
            log_probs=torch.empty(0),
            values=torch.empty(0),
            next_values=torch.empty(0),
            boundary_observations=tree_map(tensor, boundary),
            boundary_rows=tensor(rows),
            rewards=tensor(rewards.astype(np.float32)),
            terminations=tensor(terminations),
            truncations=tensor(truncations),
            valid=tensor(valid),
            episodes=self.episodes.record(rewards, ended, valid),
            policy_version=self.policy.version,
            action_masks=None if masks is None else tensor(masks),
            starts=None if actor.states is None else tensor(starts),
            states=actor.states,
        )
        self._score(rollout)
        rollout.collect_seconds = time.perf_counter() - started
        return rollout

    def _boundary(self, observations: Any, finals: list[tuple[int, int, Any]]) -> tuple[Any, np.ndarray]:
        """Return the next observations that no row of the rollout shows, and the rows that they follow.

        Args:
            observations: (T, N, ...), of the rollout.
            finals: Step, environment and final observation of episodes that were reset within the step.
        """
        num_envs, last_step = self.stepper.env.num_envs, self.num_steps - 1
        after_last = tree_map(
            lambda stored, seen: np.array(seen, dtype=stored.dtype), observations, self.stepper.observations
        )
        for t, env, final in finals:
            if t == last_step:
                tree_store(after_last, env, final)
        inner = [(t * num_envs + env, final) for t, env, final in finals if t < last_step]
        rows = [*range(last_step * num_envs, (last_step + 1) * num_envs), *(row for row, _ in inner)]
        boundary = tree_map(
            lambda after, *others: np.concatenate((after, *(np.asarray(x, dtype=after.dtype)[None] for x in others))),
            after_last,
            *(final for _, final in inner),
        )
        return boundary, np.array(rows, dtype=np.int64)

    def _score(self, rollout: Rollout) -> None:
        """Fill in what the behaviour policy says of the rollout: distribution, log_probs, values and next_values."""
        if rollout.states is not None and self.state is not None:
            after = torch.cat((rollout.states[1:], self.state[None]))
            rollout.boundary_states = after.flatten(0, 1)[rollout.boundary_rows]
        now, boundary_values = self.policy.evaluate_rollout(rollout)
        rollout.distribution, rollout.log_probs, _, rollout.values = now
        rollout.next_values = following_values(rollout.values, boundary_values, rollout.boundary_rows)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next rollout depends on besides the policy, as plain data."""
        return {
            "stepper": self.stepper.state_dict(),
            "generator": self.generator.get_state(),
            "recurrent_state": None if self.state is None else self.state.cpu().clone(),
            "episode_returns": torch.from_numpy(self.episodes.returns.copy()),
            "episode_lengths": torch.from_numpy(self.episodes.lengths.copy()),
            "episode_skips": torch.from_numpy(self.episodes.skips.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; where the environment's state is missing, its episodes start anew."""
        self.generator.set_state(state["generator"].cpu())
        if state["stepper"]["env"] is None:
            return
        self.stepper.load_state_dict(state["stepper"])
        if self.state is not None:
            self.state = state["recurrent_state"].to(self.state.device)
        self.episodes.returns = state["episode_returns"].numpy().copy()
        self.episodes.lengths = state["episode_lengths"].numpy().copy()
        self.episodes.skips = state["episode_skips"].numpy().copy()


def _stored(observations: np.ndarray) -> np.dtype:
    """Return the dtype in which observations are stored: float32 for float64."""
    return np.dtype(np.float32) if observations.dtype == np.float64 else observations.dtype
