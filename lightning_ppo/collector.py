"""Step a vector environment T times with a policy and return the rollout; owns the environments and episode records."""

import time
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from lightning_ppo.acting import make_actor
from lightning_ppo.advantages import following_values
from lightning_ppo.envs.stepper import VectorStepper, check_finite
from lightning_ppo.episodes import EpisodeRecorder
from lightning_ppo.errors import EnvironmentFault
from lightning_ppo.policy import EVALUATION_ROWS, ActorCritic, eval_mode
from lightning_ppo.rollout import Rollout


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
    """

    def __init__(
        self, env: VectorEnv, policy: ActorCritic, num_steps: int, generator: torch.Generator, seeds: list[int]
    ) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.generator = generator
        self.stepper = VectorStepper(env)
        self.episodes = EpisodeRecorder(env.num_envs)
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
        num_envs, device = stepper.env.num_envs, self.generator.device
        shape = (num_steps, num_envs)
        kind = stepper.observations.dtype
        kind = np.dtype(np.float32) if kind == np.float64 else kind
        observations = np.empty((*shape, *stepper.observations.shape[1:]), dtype=kind)
        rewards = np.empty(shape, dtype=np.float64)
        terminations, truncations = np.empty(shape, dtype=np.bool_), np.empty(shape, dtype=np.bool_)
        valid = np.ones(shape, dtype=np.bool_)
        finals: list[tuple[int, int, np.ndarray]] = []
        actor = make_actor(self.policy, shape, self.generator)
        first_step = stepper.num_steps
        try:
            for t in range(num_steps):
                observations[t] = stepper.observations
                rewards[t], terminations[t], truncations[t] = stepper.step(actor(t, observations[t]))
                if stepper.any_filler:
                    valid[t] = ~stepper.filler
                if stepper.final_observations:
                    finals += [(t, i, final) for i, final in stepper.final_observations.items()]
        except EnvironmentFault:
            check_finite(observations[: t + 1], rewards[:t], first_step)
            raise
        ended = terminations | truncations
        # an episode cut off at a filler row, where its environment was replaced, had its last step in the row before
        truncations[:-1] |= truncations[1:] & ~valid[1:]
        boundary, rows = self._boundary(kind, finals)
        check_finite(np.concatenate((observations, boundary[None, :num_envs])), rewards, first_step)
        for row, observation in zip(rows[num_envs:], boundary[num_envs:], strict=True):
            check_finite(observation[None, None], rewards[:0], first_step + row // num_envs + 1, row % num_envs)

        rollout = Rollout(
            observations=torch.from_numpy(observations).to(device),
            actions=actor.actions,
            distribution=torch.empty(0),
            log_probs=torch.empty(0),
            values=torch.empty(0),
            next_values=torch.empty(0),
            boundary_observations=torch.from_numpy(boundary).to(device),
            boundary_rows=torch.from_numpy(rows).to(device),
            rewards=torch.from_numpy(rewards.astype(np.float32)).to(device),
            terminations=torch.from_numpy(terminations).to(device),
            truncations=torch.from_numpy(truncations).to(device),
            valid=torch.from_numpy(valid).to(device),
            episodes=self.episodes.record(rewards, ended, valid),
            policy_version=self.policy.version,
        )
        self._score(rollout)
        rollout.collect_seconds = time.perf_counter() - started
        return rollout

    def _boundary(self, dtype: np.dtype, finals: list[tuple[int, int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the next observations that no row of the rollout shows, and the rows that they follow.

        Args:
            dtype: Of the observations.
            finals: Step, environment and final observation of episodes that were reset within the step.
        """
        num_envs, last_step = len(self.stepper.observations), self.num_steps - 1
        after_last = np.array(self.stepper.observations, dtype=dtype)
        for t, env, final in finals:
            if t == last_step:
                after_last[env] = final
        inner = [(t * num_envs + env, final) for t, env, final in finals if t < last_step]
        rows = [*range(last_step * num_envs, (last_step + 1) * num_envs), *(row for row, _ in inner)]
        observations = np.concatenate((after_last, *(np.asarray(final, dtype=dtype)[None] for _, final in inner)))
        return observations, np.array(rows, dtype=np.int64)

    def _score(self, rollout: Rollout) -> None:
        """Fill in what the behaviour policy says of the rollout: distribution, log_probs, values and next_values."""
        shape = rollout.rewards.shape
        assert isinstance(rollout.observations, Tensor) and isinstance(rollout.boundary_observations, Tensor)
        rows = zip(
            rollout.observations.flatten(0, 1).split(EVALUATION_ROWS),
            rollout.actions.flatten(0, 1).split(EVALUATION_ROWS),
            strict=True,
        )
        chunks = [self.policy.evaluate(observations, actions) for observations, actions in rows]
        rollout.distribution = torch.cat([c.distribution for c in chunks]).reshape(*shape, -1)
        rollout.log_probs = torch.cat([c.log_probs for c in chunks]).reshape(shape)
        rollout.values = torch.cat([c.values for c in chunks]).reshape(shape)
        boundary_values = self.policy.value(rollout.boundary_observations)
        rollout.next_values = following_values(rollout.values, boundary_values, rollout.boundary_rows)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next rollout depends on besides the policy, as plain data."""
        return {
            "stepper": self.stepper.state_dict(),
            "generator": self.generator.get_state(),
            "episode_returns": torch.from_numpy(self.episodes.returns.copy()),
            "episode_lengths": torch.from_numpy(self.episodes.lengths.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; where the environment's state is missing, its episodes start anew."""
        self.generator.set_state(state["generator"].cpu())
        if state["stepper"]["env"] is None:
            return
        self.stepper.load_state_dict(state["stepper"])
        self.episodes.returns = state["episode_returns"].numpy().copy()
        self.episodes.lengths = state["episode_lengths"].numpy().copy()
