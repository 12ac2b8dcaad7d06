"""The steps of a rollout as NumPy arrays on the host."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ppo.collection.storage import Steps, Storage
from lightning_ppo.envs.checking import check_finite, check_rollout
from lightning_ppo.envs.stepper import Stepper
from lightning_ppo.envs.training_signal import Lesson
from lightning_ppo.support.tree import tree_map, tree_store


class HostStorage(Storage):
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
        super().__init__(stepper, num_steps, device, dtype)
        shape = self.num_steps, self.num_envs
        self._pinned = device.type == "cuda"
        seen = stepper.observations, stepper.starts, stepper.action_masks
        self._seen = tree_map(lambda x: None if x is None else self._empty(x), seen)
        self._there = None
        if stream:
            self._there = tree_map(lambda x: None if x is None else torch.empty_like(x, device=device), self._seen)
        self._views = tree_map(lambda x: None if x is None else x.numpy(), self._seen)
        self._rewards = np.empty(shape, dtype=np.float64)
        self._terminations = np.empty(shape, dtype=np.bool_)
        self._truncations = np.empty(shape, dtype=np.bool_)
        self._valid = np.ones(shape, dtype=np.bool_)
        self._finals: list[tuple[int, int, Any]] = []
        self._lessons: Lesson | None = None
        self._infos: np.ndarray | None = None
        self._successes: np.ndarray | None = None

    def _empty(self, x: np.ndarray) -> Tensor:
        """Return room for T of such arrays."""
        dtype = self.dtype if x.dtype == np.float64 else torch.from_numpy(np.empty(0, x.dtype)).dtype
        return torch.empty((self.num_steps, *x.shape), dtype=dtype, pin_memory=self._pinned)

    def see(self, step: int) -> tuple[Any, Any, Any]:
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

    def keep(self, step: int, rewards: np.ndarray, terminations: np.ndarray, truncations: np.ndarray) -> None:
        """Keep what came of a step."""
        stepper = self.stepper
        self._rewards[step], self._terminations[step], self._truncations[step] = rewards, terminations, truncations
        if stepper.lesson is not None and self._lessons is None:
            self._lessons = self._rewards.copy(), self._terminations.copy()
        if self._lessons is not None:
            for kept, given in zip(self._lessons, stepper.lesson or (rewards, terminations), strict=True):
                kept[step] = given
        if stepper.successes is not None:
            if self._successes is None:
                self._successes = np.full(self._rewards.shape, np.nan)
            self._successes[step] = stepper.successes
        if stepper.info_values is not None:
            if self._infos is None:
                self._infos = np.empty((self.num_steps, *stepper.info_values.shape))
            self._infos[step] = stepper.info_values
        if stepper.any_filler:
            self._valid[step] = ~stepper.filler
        if stepper.final_observations:
            self._finals += [(step, i, final) for i, final in stepper.final_observations.items()]

    def check(self, step: int) -> None:
        """Raise EnvironmentFault if a NaN or an infinity is among what was kept before a step that failed."""
        seen = tree_map(lambda x: x[: step + 1], self._views[0])
        check_finite(seen, self._rewards[:step], self.first_step)

    def finish(self) -> Steps:
        """Return everything."""
        boundary, rows = self._boundary()
        check_rollout(
            self._views[0], boundary, rows, self._rewards, self.first_step, self._valid, self.stepper.declared
        )

        if self._lessons is not None:
            check_finite((), self._lessons[0], self.first_step)

        def tensor(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x).to(self.device)

        seen = self._there or tree_map(
            lambda x: None if x is None else x.to(self.device, non_blocking=True), self._seen
        )
        observations, starts, masks = seen
        learn_rewards, learn_terminations = self._rewards, self._terminations
        if self._lessons is not None:
            learn_rewards, learn_terminations = self._lessons
        infos = np.empty((self.num_steps, 0, self.num_envs)) if self._infos is None else self._infos
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
            *self._told(torch.from_numpy(infos)),
            None if self._successes is None else torch.from_numpy(self._successes),
        )

    def _boundary(self) -> tuple[Any, np.ndarray]:
        """Return the next observations that no row of the rollout shows, and the rows that they follow."""
        num_steps, num_envs = self.num_steps, self.num_envs
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
