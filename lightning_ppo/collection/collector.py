"""Step a vector environment T times with a policy and return the rollout; owns the environments and episode records."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from lightning_ppo.collection.acting import Actor, RecordedActing, make_actor
from lightning_ppo.collection.device_storage import DeviceStorage
from lightning_ppo.collection.host_storage import HostStorage
from lightning_ppo.collection.storage import Steps, Storage
from lightning_ppo.envs.changes import Change, from_plain
from lightning_ppo.envs.reaching import make_changes
from lightning_ppo.envs.stepper import Stepper
from lightning_ppo.envs.tensors import TensorStepper, make_stepper
from lightning_ppo.policy.actor_critic import ActorCritic, eval_mode
from lightning_ppo.policy.scoring import evaluate_rollout
from lightning_ppo.rollout.advantages import following_values
from lightning_ppo.rollout.episodes import EpisodeRecorder
from lightning_ppo.rollout.shapes import Episodes, Rollout
from lightning_ppo.speed import switch
from lightning_ppo.speed.graphs import autocast_cache, can_record
from lightning_ppo.support.errors import EnvironmentFault
from lightning_ppo.support.randomness import restore_generator


class RolloutCollector(Protocol):
    """Collects rollouts of N environments, here or elsewhere.

    Attributes:
        policy: The policy that learns.
        num_envs: N.
    """

    policy: ActorCritic

    @property
    def num_envs(self) -> int:
        """N."""

    def collect(self) -> Rollout:
        """Return the next rollout."""

    def change(self, changes: Sequence[Change]) -> None:
        """Have changes made in all environments before the next rollout is begun."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return everything the next rollout depends on besides the policy, as plain data; None where it is lost."""

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Continue from a saved state; return why episodes start anew, if any do."""

    def close(self) -> None:
        """Close the environments."""


def stepper_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of the environments in the state of a collector, one for each group of them."""
    return [group["stepper"] for group in state.get("groups", [state])]


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
        skip_first: Do not report the first episode of each environment if it was truncated, since it may have been cut
            short.
        compile: Replay acting on a GPU as a CUDA graph.
        log_info: Entries of infos that are logged, see `EnvConfig.log_info`.
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
        compile: bool = False,
        log_info: Sequence[str] | str = (),
    ) -> None:
        self.policy = policy
        self.num_steps = num_steps
        self.generator = generator
        self.stepper = make_stepper(env, action_mask, seeds, log_info=log_info)
        self.episodes = EpisodeRecorder(env.num_envs, skip_first)
        self.state = policy.initial_states(env.num_envs)
        self.recorded = RecordedActing(policy) if compile and can_record(generator.device) else None

    @property
    def num_envs(self) -> int:
        """N."""
        return self.stepper.env.num_envs

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Return the next rollout, collected with the policy as it is now, in eval mode.

        Raises:
            EnvironmentFault: If the environment raises, or returns a wrong shape, a NaN or an infinity.
        """
        started = time.perf_counter()
        with self._acting():
            actor, storage = self._prepare()
            self._interact(actor, storage)
            steps = storage.finish()
            rollout = self._assemble(actor, steps, self._finish_episodes(steps))
            self._score(rollout)
        rollout.collect_seconds = time.perf_counter() - started
        return rollout

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Put the policy in eval mode; the environments count as failed until the rollout is complete."""
        failed, self.stepper.failed = self.stepper.failed, True
        with eval_mode(self.policy), autocast_cache(True) if switch.is_on() else nullcontext():
            yield
        self.stepper.failed = failed

    def _prepare(self) -> tuple[Actor, Storage]:
        """Return what acts, with noise for the whole rollout, and what the steps are kept in."""
        stepper = self.stepper
        shape = self.num_steps, self.num_envs
        actor = make_actor(self.policy, shape, self.generator, self.state, stepper.takes_tensors, self.recorded)
        device = self.generator.device
        return actor, make_storage(stepper, self.num_steps, device, self.policy.dtype, actor.device)

    def _interact(self, actor: Actor, storage: Storage) -> None:
        """Act and step T times."""
        step = 0
        try:
            for step in range(self.num_steps):
                actions = actor(step, *storage.see(step))
                storage.keep(step, *self.stepper.step(actions))
        except EnvironmentFault:
            storage.check(step)
            raise

    def _finish_episodes(self, steps: Steps) -> Episodes:
        """Return the episodes that ended; those cut off at a filler row had their last step in the row before."""
        ended = steps.terminations | steps.truncations
        infos = {name: values for name, values in steps.infos.items() if name not in steps.shared}
        found = steps.rewards, ended, steps.valid, steps.terminations, steps.successes, infos
        episodes = self.episodes.add(*found)
        steps.truncations[:-1] |= steps.truncations[1:] & ~steps.valid[1:]
        return episodes

    def _assemble(self, actor: Actor, steps: Steps, episodes: Episodes) -> Rollout:
        """Return the rollout on the policy's device, before it is scored."""
        device = self.generator.device
        self.state = None if actor.state is None else actor.state.to(device)
        return Rollout(
            observations=self.policy.lay_out(steps.observations) if switch.is_on() else steps.observations,
            actions=actor.actions.to(device),
            distribution=torch.empty(0),
            log_probs=torch.empty(0),
            values=torch.empty(0),
            next_values=torch.empty(0),
            boundary_observations=steps.boundary_observations,
            boundary_rows=steps.boundary_rows,
            rewards=steps.learn_rewards.to(device, self.policy.dtype),
            terminations=steps.learn_terminations.to(device),
            truncations=steps.truncations.to(device),
            valid=steps.valid.to(device),
            episodes=episodes,
            infos={name: self._logged(values, steps.valid) for name, values in steps.infos.items()},
            policy_version=self.policy.version,
            action_masks=steps.action_masks,
            starts=None if actor.states is None else steps.starts,
            states=None if actor.states is None else actor.states.to(device),
        )

    def _logged(self, values: Tensor, valid: Tensor) -> Tensor:
        """Return an info (T, N) as rollouts have it: told by transitions alone."""
        return torch.where(valid, values, torch.nan).to(self.generator.device, self.policy.dtype)

    def _score(self, rollout: Rollout) -> None:
        """Fill in the outputs of the behaviour policy: distribution, log_probs, values and next_values."""
        if rollout.states is not None and self.state is not None:
            after, size = rollout.boundary_rows + self.num_envs, rollout.rewards.numel()
            within = rollout.states.flatten(0, 1)[after.clamp(max=size - 1)]
            last = self.state[rollout.boundary_rows % self.num_envs]
            rollout.boundary_states = torch.where((after < size).unsqueeze(-1), within, last)
        now, boundary_values = evaluate_rollout(self.policy, rollout)
        rollout.distribution, rollout.log_probs, _, rollout.values = now
        rollout.next_values = following_values(rollout.values, boundary_values, rollout.boundary_rows)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next rollout depends on besides the policy, as plain data."""
        return {
            "stepper": self.stepper.state_dict(),
            "generator": self.generator.get_state(),
            "recurrent_state": None if self.state is None else self.state.cpu().clone(),
            **self.episodes.state_dict(),
            "infos": self.stepper.infos.names,
        }

    def change(self, changes: Sequence[Change]) -> None:
        """Make changes in all environments, at once.

        Raises:
            ConfigError: If one cannot be made.
        """
        make_changes(self.stepper.env, changes)

    def close(self) -> None:
        """Close the environments."""
        self.stepper.close()

    def load_state_dict(self, state: dict[str, Any]) -> str:
        """Continue from a saved state; return why its episodes start anew, if they do."""
        restore_generator(self.generator, state["generator"], "actions are drawn")
        reason = self.stepper.resume(state["stepper"])
        if not reason:
            reader = self.stepper.infos
            reader.names = reader.names if reader.names is not None else state.get("infos")
            self.episodes.load_state_dict(state, reader.names or ())
            if self.state is not None:
                self.state = state["recurrent_state"].to(self.state)  # the precision may be another one now, too
            self.change(from_plain(state.get("changes", ())))  # that another process had not made yet
        return reason


def make_storage(
    stepper: Stepper, num_steps: int, device: torch.device, dtype: torch.dtype, acting: torch.device
) -> Storage:
    """Return the storage of a rollout of T steps.

    Args:
        stepper: What will be stepped.
        num_steps: T.
        device: The policy's.
        dtype: The policy's; float64 is stored as that.
        acting: Where actions are computed, the policy's device or the host.
    """
    if isinstance(stepper, TensorStepper):
        return DeviceStorage(stepper, num_steps, device, dtype)
    return HostStorage(stepper, num_steps, device, dtype, resides_elsewhere(acting))


def resides_elsewhere(device: torch.device) -> bool:
    """Return whether what lies in NumPy arrays must be copied for a device to see it."""
    return device.type != "cpu"
