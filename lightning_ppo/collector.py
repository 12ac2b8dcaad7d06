"""Step a vector environment T times with a policy and return the rollout; owns environment state and episode records."""

import time
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from lightning_ppo.envs import autoreset_mode, get_env_state, set_env_state
from lightning_ppo.errors import EnvironmentFault
from lightning_ppo.policy import ActorCritic
from lightning_ppo.rollout import Episodes, Rollout

EVALUATION_ROWS = 8192
"""Rows that go through the networks at once when a rollout is scored."""


class VectorStepper:
    """Steps a vector environment and hides how it starts new episodes.

    After `step`, `observations` is what the policy acts on next, and the other attributes tell of the step just made.

    Attributes:
        observations: (N, ...), current observations; valid until the next step.
        filler: (N,) bool; this step only reset the environment (NEXT_STEP), it is no transition.
        final_observations: True last observations by environment index, where they differ from what follows.
        num_steps: Steps made, for error messages.

    Args:
        env: The vector environment.
        to_env: Maps policy actions to environment actions.

    Raises:
        EnvironmentFault: If the environment's autoreset mode is unknown, or it raises or returns a wrong shape.
    """

    def __init__(self, env: VectorEnv, to_env: Any) -> None:
        self.env = env
        self.to_env = to_env
        self.mode = autoreset_mode(env)
        self.observations: np.ndarray = np.empty(0)
        self.num_steps = 0
        self.final_observations: dict[int, np.ndarray] = {}
        self._shape = env.observation_space.shape
        self.filler = np.zeros(env.num_envs, dtype=np.bool_)
        self._ended = np.zeros(env.num_envs, dtype=np.bool_)

    def reset(self, seeds: list[int]) -> None:
        """Start all episodes anew, environment i from `seeds[i]`."""
        per_copy = hasattr(self.env, "envs") or hasattr(self.env, "env_fns")
        observations, _ = self._call("reset", seed=list(seeds) if per_copy else seeds[0])
        self._set_observations(observations)
        self.filler = np.zeros(self.env.num_envs, dtype=np.bool_)
        self._ended = np.zeros(self.env.num_envs, dtype=np.bool_)

    def step(self, actions: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step with policy actions (N, ...); return rewards, terminations and truncations, each (N,)."""
        observations, rewards, terminations, truncations, infos = self._call("step", self.to_env(actions).cpu().numpy())
        self.num_steps += 1
        if self.final_observations:
            self.final_observations = {}
        ended = terminations | truncations
        if self.mode is AutoresetMode.NEXT_STEP:
            self.filler, self._ended = self._ended, ended
        elif ended.any():
            ended_indices = np.flatnonzero(ended)
            if self.mode is AutoresetMode.SAME_STEP:
                final = infos.get("final_obs")
                if final is None:
                    raise EnvironmentFault(
                        f"{type(self.env).__name__} declares SAME_STEP autoreset but gave no final_obs at step "
                        f"{self.num_steps} although env {ended_indices[0]} ended"
                    )
                self.final_observations = {int(i): np.array(final[i]) for i in ended_indices}
            else:
                self.final_observations = {int(i): np.array(observations[i]) for i in ended_indices}
                observations, _ = self._call("reset", options={"reset_mask": ended})
        self._set_observations(observations)
        return rewards, terminations, truncations

    def _set_observations(self, observations: np.ndarray) -> None:
        if observations.shape != self._shape:
            raise EnvironmentFault(
                f"the environment returned observations of shape {observations.shape} at step {self.num_steps}, "
                f"expected {self._shape}"
            )
        self.observations = observations

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.env, method)(*args, **kwargs)
        except EnvironmentFault:
            raise
        except Exception as error:
            raise EnvironmentFault(
                f"the environment raised in {method} after {self.num_steps} steps: {type(error).__name__}: "
                f"{' '.join(str(error).split())}"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on exactly here; `env` is None where the environment's state cannot be had."""
        env_state, reason = get_env_state(self.env)
        return {
            "env": env_state,
            "reason": reason,
            "observations": torch.from_numpy(np.array(self.observations)),
            "ended": torch.from_numpy(self._ended.copy()),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the environment must have been reset once before."""
        set_env_state(self.env, state["env"])
        self.observations = state["observations"].numpy().copy()
        self._ended = state["ended"].numpy().copy()
        self.num_steps = state["num_steps"]


class EpisodeRecorder:
    """Returns and lengths of episodes that span rollouts; filler rows count for neither.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs, dtype=np.float64)
        self.lengths = np.zeros(num_envs, dtype=np.int64)

    def record(self, rewards: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> Episodes:
        """Add T steps, each argument (T, N), and return the episodes that ended in them, in order of time."""
        episodes: list[tuple[int, float, int]] = []
        rewards = np.where(valid, rewards, 0.0)
        steps = valid.astype(np.int64)
        total_rewards = np.concatenate((self.returns[None], rewards)).cumsum(0)[1:]
        total_steps = np.concatenate((self.lengths[None], steps)).cumsum(0)[1:]
        self.returns, self.lengths = total_rewards[-1].copy(), total_steps[-1].copy()
        for env in np.flatnonzero(ended.any(0)):
            reward_before, steps_before = 0.0, 0
            for t in np.flatnonzero(ended[:, env]):
                episodes.append((int(t), total_rewards[t, env] - reward_before, int(total_steps[t, env]) - steps_before))
                reward_before, steps_before = total_rewards[t, env], int(total_steps[t, env])
            self.returns[env] -= reward_before
            self.lengths[env] -= steps_before
        episodes.sort(key=lambda episode: episode[0])
        return Episodes(
            torch.tensor([e[1] for e in episodes], dtype=torch.float64),
            torch.tensor([e[2] for e in episodes], dtype=torch.int64),
        )


class Collector:
    """Collects rollouts of T steps from N environments.

    A step of acting computes nothing but the action. Distributions, log-probabilities and values of the whole rollout
    are computed afterwards in one batch, by the method that also computes them for the update.

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
        self.stepper = VectorStepper(env, policy.head.to_env)
        self.episodes = EpisodeRecorder(env.num_envs)
        self.stepper.reset(seeds)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Return the next rollout, collected with the policy as it is now.

        Raises:
            EnvironmentFault: If the environment raises, or returns a wrong shape, a NaN or an infinity.
        """
        started = time.perf_counter()
        policy, stepper, num_steps = self.policy, self.stepper, self.num_steps
        num_envs, device = stepper.env.num_envs, self.generator.device
        shape = (num_steps, num_envs)
        dtype = torch.from_numpy(stepper.observations).dtype
        dtype = torch.float32 if dtype == torch.float64 else dtype
        observations = torch.empty((*shape, *stepper.observations.shape[1:]), dtype=dtype)
        observations_np = observations.numpy()
        actions = torch.empty((*shape, *policy.head.action_shape), dtype=policy.head.action_dtype, device=device)
        rewards = np.empty(shape, dtype=np.float64)
        terminations, truncations = np.empty(shape, dtype=np.bool_), np.empty(shape, dtype=np.bool_)
        valid = np.ones(shape, dtype=np.bool_)
        finals: list[tuple[int, int, np.ndarray]] = []
        noise = policy.head.noise(shape, self.generator)
        steps = zip(observations.unbind(0), noise.unbind(0), actions.unbind(0), strict=True)
        first_step = stepper.num_steps
        try:
            for t, (observation, step_noise, action) in enumerate(steps):
                observations_np[t] = stepper.observations
                action.copy_(policy.act(observation.to(device), step_noise))
                rewards[t], terminations[t], truncations[t] = stepper.step(action)
                if stepper.filler.any():
                    valid[t] = ~stepper.filler
                if stepper.final_observations:
                    finals += [(t, i, final) for i, final in stepper.final_observations.items() if truncations[t, i]]
        except EnvironmentFault:
            made = stepper.num_steps - first_step
            _check_finite(observations_np[: made + 1], rewards[:made], first_step)
            raise
        last = torch.from_numpy(np.array(stepper.observations, dtype=observations_np.dtype))
        _check_finite(np.concatenate((observations_np, last.numpy()[None])), rewards, first_step)

        rollout = Rollout(
            observations=observations.to(device),
            actions=actions,
            distribution=torch.empty(0),
            log_probs=torch.empty(0),
            values=torch.empty(0),
            next_values=torch.empty(0),
            rewards=torch.from_numpy(rewards.astype(np.float32)).to(device),
            terminations=torch.from_numpy(terminations).to(device),
            truncations=torch.from_numpy(truncations).to(device),
            valid=torch.from_numpy(valid).to(device),
            episodes=self.episodes.record(rewards, terminations | truncations, valid),
            policy_version=policy.version,
        )
        self._score(rollout, last.to(device), finals)
        rollout.collect_seconds = time.perf_counter() - started
        return rollout

    def _score(self, rollout: Rollout, last: Tensor, finals: list[tuple[int, int, np.ndarray]]) -> None:
        """Fill in what the behaviour policy says of the rollout.

        Args:
            rollout: Its distribution, log_probs, values and next_values are set.
            last: (N, ...), observations after the last step.
            finals: Step, environment and observation of episode ends that the rollout itself does not show.
        """
        shape = rollout.rewards.shape
        assert isinstance(rollout.observations, Tensor)
        chunks = [
            self.policy.evaluate(observations, actions)
            for observations, actions in zip(
                rollout.observations.flatten(0, 1).split(EVALUATION_ROWS),
                rollout.actions.flatten(0, 1).split(EVALUATION_ROWS),
                strict=True,
            )
        ]
        rollout.distribution = torch.cat([c.distribution for c in chunks]).reshape(*shape, -1)
        rollout.log_probs = torch.cat([c.log_probs for c in chunks]).reshape(shape)
        rollout.values = torch.cat([c.values for c in chunks]).reshape(shape)
        following = last
        if finals:
            extra = torch.from_numpy(np.stack([final for _, _, final in finals])).to(last)
            following = torch.cat((last, extra))
        values = torch.cat([self.policy.value(rows) for rows in following.split(EVALUATION_ROWS)])
        rollout.next_values = torch.cat((rollout.values[1:], values[None, : shape[1]]))
        if finals:
            steps, envs = torch.tensor([[t, i] for t, i, _ in finals], device=values.device).unbind(1)
            rollout.next_values[steps, envs] = values[shape[1] :]

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


def _check_finite(observations: np.ndarray, rewards: np.ndarray, first_step: int) -> None:
    """Raise EnvironmentFault if observations (K, N, ...) or rewards (T, N) hold a NaN or an infinity."""
    for name, values in (("observation", observations), ("reward", rewards)):
        if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values.sum(dtype=np.float64)):
            continue
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            step, env = int(bad[0][0]), int(bad[0][1])
            raise EnvironmentFault(
                f"env {env} returned the {name} {values[tuple(bad[0])]} at step {first_step + step} "
                f"of this process; the weights have not been touched"
            )
