"""Where the steps of a rollout are kept while it is collected: on the host, or on the policy's device."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.envs.lessons import Lesson
from lightning_ppo.envs.stepper import Stepper, check_finite, check_rollout
from lightning_ppo.envs.tensors import TensorStepper, to_host
from lightning_ppo.errors import EnvironmentFault
from lightning_ppo.rollout import Observations
from lightning_ppo.tree import tree_leaves, tree_map, tree_store


class Steps(NamedTuple):
    """T steps of N environments; the fields are those of `Rollout`.

    Rewards (float64 where NumPy gave them), ends and `valid` are where the environment is, the rest is where the policy
    is.
    """

    observations: Observations
    boundary_observations: Observations
    boundary_rows: Tensor
    rewards: Tensor
    terminations: Tensor
    truncations: Tensor
    learn_rewards: Tensor
    """What to learn from, where the environment told it apart from the rewards that make the score."""
    learn_terminations: Tensor
    valid: Tensor
    starts: Tensor
    action_masks: Tensor | None


class Storage(Protocol):
    """Takes in a rollout step by step; first `before` acting, then `after` the environment's step."""

    def before(self, step: int) -> tuple[Any, Any, Any]:
        """Keep what the policy sees at a step, and return it as an actor takes it: observations, starts, masks."""

    def after(self, step: int, rewards: Any, terminations: Any, truncations: Any) -> None:
        """Keep what came of a step."""

    def check(self, step: int) -> None:
        """Raise EnvironmentFault if a NaN or an infinity is among what was kept before a step that failed."""

    def finish(self) -> Steps:
        """Return everything.

        Raises:
            EnvironmentFault: If a NaN or an infinity is among it.
        """


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


class HostStorage:
    """Steps of an environment that speaks NumPy.

    A policy that acts on another device is sent each observation as soon as it is known, from pinned memory of its own
    and without waiting, and it stays there. One that acts on the host has all of them sent at the end.

    Args:
        stepper: What is stepped.
        num_steps: T.
        device: The policy's.
        dtype: The policy's; float64 is stored as that.
        stream: Whether to send each observation to the policy's device at once.
    """

    def __init__(
        self, stepper: Stepper, num_steps: int, device: torch.device, dtype: torch.dtype, stream: bool
    ) -> None:
        self.stepper, self.device, self.dtype = stepper, device, dtype
        self._shape = num_steps, stepper.env.num_envs
        self._pinned = device.type == "cuda"
        seen = stepper.observations, stepper.starts, stepper.action_masks
        self._seen = tree_map(lambda x: None if x is None else self._empty(x), seen)
        self._there = None
        if stream:
            self._there = tree_map(lambda x: None if x is None else torch.empty_like(x, device=device), self._seen)
        self._views = tree_map(lambda x: None if x is None else x.numpy(), self._seen)
        self._rewards = np.empty(self._shape, dtype=np.float64)
        self._terminations = np.empty(self._shape, dtype=np.bool_)
        self._truncations = np.empty(self._shape, dtype=np.bool_)
        self._valid = np.ones(self._shape, dtype=np.bool_)
        self._finals: list[tuple[int, int, Any]] = []
        self._lessons: Lesson | None = None
        self._first_step = stepper.num_steps

    def _empty(self, x: np.ndarray) -> Tensor:
        """Return room for T of such arrays."""
        dtype = self.dtype if x.dtype == np.float64 else torch.from_numpy(np.empty(0, x.dtype)).dtype
        return torch.empty((self._shape[0], *x.shape), dtype=dtype, pin_memory=self._pinned)

    def before(self, step: int) -> tuple[Any, Any, Any]:
        """Keep what the policy sees at a step, and return it."""
        stepper = self.stepper
        observations, starts, masks = self._views
        row = tree_store(observations, step, stepper.observations)
        starts[step] = stepper.starts
        if masks is not None:
            masks[step] = stepper.action_masks
        if self._there is None:
            return row, starts[step], None if masks is None else masks[step]
        return tree_map(
            lambda there, here: None if there is None else there[step].copy_(here[step], non_blocking=True),
            self._there,
            self._seen,
        )

    def after(self, step: int, rewards: np.ndarray, terminations: np.ndarray, truncations: np.ndarray) -> None:
        """Keep what came of a step."""
        stepper = self.stepper
        self._rewards[step], self._terminations[step], self._truncations[step] = rewards, terminations, truncations
        if stepper.lesson is not None and self._lessons is None:
            self._lessons = self._rewards.copy(), self._terminations.copy()
        if self._lessons is not None:
            for kept, given in zip(self._lessons, stepper.lesson or (rewards, terminations), strict=True):
                kept[step] = given
        if stepper.any_filler:
            self._valid[step] = ~stepper.filler
        if stepper.final_observations:
            self._finals += [(step, i, final) for i, final in stepper.final_observations.items()]

    def check(self, step: int) -> None:
        """Raise EnvironmentFault if a NaN or an infinity is among what was kept before a step that failed."""
        seen = tree_map(lambda x: x[: step + 1], self._views[0])
        check_finite(seen, self._rewards[:step], self._first_step)

    def finish(self) -> Steps:
        """Return everything."""
        boundary, rows = self._boundary()
        check_rollout(
            self._views[0], boundary, rows, self._rewards, self._first_step, self._valid, self.stepper.declared
        )

        if self._lessons is not None:
            check_finite((), self._lessons[0], self._first_step)

        def tensor(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x).to(self.device)

        seen = self._there or tree_map(
            lambda x: None if x is None else x.to(self.device, non_blocking=True), self._seen
        )
        observations, starts, masks = seen
        learn_rewards, learn_terminations = self._rewards, self._terminations
        if self._lessons is not None:
            learn_rewards, learn_terminations = self._lessons
        return Steps(
            observations,
            tree_map(tensor, boundary),
            tensor(rows),
            torch.from_numpy(self._rewards),
            torch.from_numpy(self._terminations),
            torch.from_numpy(self._truncations),
            torch.from_numpy(learn_rewards),
            torch.from_numpy(learn_terminations),
            torch.from_numpy(self._valid),
            starts,
            masks,
        )

    def _boundary(self) -> tuple[Any, np.ndarray]:
        """Return the next observations that no row of the rollout shows, and the rows that they follow."""
        num_steps, num_envs = self._shape
        last_step = num_steps - 1
        after_last = tree_map(
            lambda stored, seen: np.array(seen, dtype=stored.dtype), self._views[0], self.stepper.observations
        )
        for t, env, final in self._finals:
            if t == last_step:
                tree_store(after_last, env, final)
        inner = [(t * num_envs + env, final) for t, env, final in self._finals if t < last_step]
        rows = [*range(last_step * num_envs, num_steps * num_envs), *(row for row, _ in inner)]
        boundary = tree_map(
            lambda after, *others: np.concatenate((after, *(np.asarray(x, dtype=after.dtype)[None] for x in others))),
            after_last,
            *(final for _, final in inner),
        )
        return boundary, np.array(rows, dtype=np.int64)


class DeviceStorage:
    """Steps of an environment that speaks torch; nothing waits for the device before the rollout is complete.

    Final observations are kept of all environments at every step, if there are any, since which of them ended is known
    on the device alone. Where an environment gives none, the last observation acted on stands for them.

    Args:
        stepper: What is stepped.
        num_steps: T.
        device: The policy's.
        dtype: The policy's; float64 is stored as that.
    """

    def __init__(self, stepper: TensorStepper, num_steps: int, device: torch.device, dtype: torch.dtype) -> None:
        self.stepper, self.device, self.dtype = stepper, device, dtype
        self._shape = num_steps, stepper.env.num_envs
        self._observations = tree_map(self._empty, stepper.observations)
        self._starts = self._empty(stepper.starts)
        self._masks = None if stepper.action_masks is None else self._empty(stepper.action_masks)
        self._ends = torch.empty((num_steps, 2, self._shape[1]), dtype=torch.bool, device=device)
        self._valid = torch.ones(self._shape, dtype=torch.bool, device=device)
        self._rewards = torch.empty(self._shape, dtype=dtype, device=device)
        self._learn_rewards: Tensor | None = None
        self._finals: Any = None
        self._first_step = stepper.num_steps

    def _empty(self, x: Tensor) -> Tensor:
        """Return room for T of such tensors."""
        dtype = self.dtype if x.dtype == torch.float64 else x.dtype
        return torch.empty((self._shape[0], *x.shape), dtype=dtype, device=self.device)

    def before(self, step: int) -> tuple[Any, Any, Any]:
        """Keep what the policy sees at a step, and return it."""
        stepper = self.stepper
        row = tree_map(lambda kept, seen: kept[step].copy_(seen), self._observations, stepper.observations)
        starts = self._starts[step].copy_(stepper.starts)
        if self._masks is None or stepper.action_masks is None:
            return row, starts, None
        return row, starts, self._masks[step].copy_(stepper.action_masks)

    def after(self, step: int, rewards: Tensor, terminations: Tensor, truncations: Tensor) -> None:
        """Keep what came of a step."""
        stepper = self.stepper
        self._rewards[step].copy_(rewards)
        if stepper.lesson is not None:
            if self._learn_rewards is None:
                self._learn_rewards = torch.empty_like(self._rewards)
            self._learn_rewards[step].copy_(stepper.lesson[0])
        self._ends[step, 0].copy_(terminations)
        self._ends[step, 1].copy_(truncations)
        if stepper.any_filler:
            torch.logical_not(stepper.filler.to(self.device), out=self._valid[step])
        final = stepper.final_observations
        if self._finals is None and final is not None:
            self._finals = tree_map(torch.clone, self._observations)
        if self._finals is not None:
            now = tree_map(lambda x: x[step], self._observations) if final is None else final
            tree_map(lambda kept, last: kept[step].copy_(last), self._finals, now)

    def check(self, step: int) -> None:
        """Raise EnvironmentFault if a NaN or an infinity is among what was kept before a step that failed."""
        seen = tree_map(lambda x: x[: step + 1], self._observations)
        check_finite(to_host(seen), to_host(self._rewards[:step]), self._first_step)

    def finish(self) -> Steps:
        """Return everything."""
        terminations, truncations = self._ends.unbind(1)
        boundary, rows = self._boundary(terminations, truncations)
        self._check(boundary, rows)
        return Steps(
            self._observations,
            boundary,
            rows,
            self._rewards,
            terminations,
            truncations,
            self._learnt(),
            terminations,
            self._valid,
            self._starts,
            self._masks,
        )

    def _learnt(self) -> Tensor:
        return self._rewards if self._learn_rewards is None else self._learn_rewards

    def _boundary(self, terminations: Tensor, truncations: Tensor) -> tuple[Any, Tensor]:
        """Return the next observations that no row of the rollout shows, and the rows that they follow.

        A value is asked only of those after truncations; the others count in the statistics.
        """
        num_steps, num_envs = self._shape
        rows = torch.arange((num_steps - 1) * num_envs, num_steps * num_envs, device=self.device)
        boundary = tree_map(
            lambda kept, seen: seen.to(kept.device, kept.dtype, copy=True),
            self._observations,
            self.stepper.observations,
        )
        if self.stepper.any_filler:  # NEXT_STEP: final observations are shown as the next ones
            return boundary, rows
        known = self._finals is not None
        finals = self._finals if known else self._observations
        wanted = truncations | terminations if known else truncations & ~terminations
        inner = wanted[:-1].flatten().nonzero().squeeze(1)
        if len(inner) and not known:
            self.stepper.warn_of_missing_finals()
        ended = terminations[-1] | truncations[-1]

        def complete(after: Tensor, final: Tensor) -> Tensor:
            last = torch.where(ended.view(-1, *[1] * (after.dim() - 1)), final[-1], after)
            return torch.cat((last, final.flatten(0, 1)[inner]))

        return tree_map(complete, boundary, finals), torch.cat((rows, inner))

    def _check(self, boundary: Any, rows: Tensor) -> None:
        """Raise EnvironmentFault where a value or a mask cannot be learnt from; one look at the device."""
        leaves = [*tree_leaves(self._observations), *tree_leaves(boundary), self._rewards, self._learnt()]
        wrong = [~x.isfinite().all() for x in leaves if x.is_floating_point()]
        declared = self.stepper.declared
        wrong += declared.flags(self._observations) + declared.flags(boundary)
        legal = torch.ones_like(self._valid)
        if self._masks is not None:
            for part in self._masks.split(self.stepper.sizes, -1):
                legal &= part.any(-1) | ~self._valid
        if not torch.stack((*wrong, ~legal.all())).any():
            return
        observations, ends, numbers, rewards, learnt, valid = to_host(
            (self._observations, boundary, rows, self._rewards, self._learnt(), self._valid)
        )
        check_finite((), learnt, self._first_step)
        check_rollout(observations, ends, numbers, rewards, self._first_step, valid, declared)
        if legal.all():  # something has been said
            return
        step, env = (~legal).nonzero()[0].tolist()
        raise EnvironmentFault(
            f"env {env} masks every choice of an action at step {self._first_step + step}; at least one must be legal"
        )
