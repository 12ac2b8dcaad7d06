"""The steps of a rollout as tensors on the policy's device."""

from typing import Any

import torch
from torch import Tensor

from lightning_ppo.collection.storage import Steps, Storage
from lightning_ppo.envs.checking import check_finite, check_rollout
from lightning_ppo.envs.masks import nothing_legal
from lightning_ppo.envs.tensors import TensorStepper, to_host
from lightning_ppo.support.tree import tree_leaves, tree_map


class DeviceStorage(Storage):
    """Steps of an environment that speaks torch; nothing waits for the device before the rollout is complete.

    Final observations are kept of all environments at every step, if there are any, since which of them ended is known
    on the device alone. Where an environment gives none, the last observation acted on stands for them.

    Args:
        stepper: What is stepped.
        num_steps: T.
        device: The policy's.
        dtype: The policy's; float64 is stored as that.
    """

    stepper: TensorStepper

    def __init__(self, stepper: TensorStepper, num_steps: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(stepper, num_steps, device, dtype)
        shape = self.num_steps, self.num_envs
        self._observations = tree_map(self._empty, stepper.observations)
        self._starts = self._empty(stepper.starts)
        self._masks = None if stepper.action_masks is None else self._empty(stepper.action_masks)
        self._ends = torch.empty((num_steps, 2, self.num_envs), dtype=torch.bool, device=device)
        self._valid = torch.ones(shape, dtype=torch.bool, device=device)
        self._rewards = torch.empty(shape, dtype=dtype, device=device)
        self._learn_rewards: Tensor | None = None
        self._finals: Any = None
        self._infos: Tensor | None = None
        self._successes: Tensor | None = None

    def _empty(self, x: Tensor) -> Tensor:
        """Return room for T of such tensors."""
        dtype = self.dtype if x.dtype == torch.float64 else x.dtype
        return torch.empty((self.num_steps, *x.shape), dtype=dtype, device=self.device)

    def see(self, step: int) -> tuple[Any, Any, Any]:
        """Keep what the policy sees at a step, and return it."""
        stepper = self.stepper
        row = tree_map(lambda kept, seen: kept[step].copy_(seen), self._observations, stepper.observations)
        starts = self._starts[step].copy_(stepper.starts)
        if self._masks is None or stepper.action_masks is None:
            return row, starts, None
        return row, starts, self._masks[step].copy_(stepper.action_masks)

    def keep(self, step: int, rewards: Tensor, terminations: Tensor, truncations: Tensor) -> None:
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
        if stepper.successes is not None:
            if self._successes is None:
                self._successes = torch.full_like(self._rewards, torch.nan)
            self._successes[step].copy_(stepper.successes)
        if stepper.info_values is not None:
            if self._infos is None:
                self._infos = self._empty(stepper.info_values)
            self._infos[step].copy_(stepper.info_values)
        final = stepper.final_observations
        if self._finals is None and final is not None:
            self._finals = tree_map(torch.clone, self._observations)
        if self._finals is not None:
            now = tree_map(lambda x: x[step], self._observations) if final is None else final
            tree_map(lambda kept, last: kept[step].copy_(last), self._finals, now)

    def check(self, step: int) -> None:
        """Raise EnvironmentFault if a NaN or an infinity is among what was kept before a step that failed."""
        seen = tree_map(lambda x: x[: step + 1], self._observations)
        check_finite(to_host(seen), to_host(self._rewards[:step]), self.first_step)

    def finish(self) -> Steps:
        """Return everything."""
        terminations, truncations = self._ends.unbind(1)
        boundary, rows = self._boundary(terminations, truncations)
        self._check(boundary, rows)
        infos = self._infos
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
            *self._told(self._rewards.new_empty((self.num_steps, 0, self.num_envs)) if infos is None else infos),
            self._successes,
        )

    def _learnt(self) -> Tensor:
        return self._rewards if self._learn_rewards is None else self._learn_rewards

    def _boundary(self, terminations: Tensor, truncations: Tensor) -> tuple[Any, Tensor]:
        """Return the next observations that no row of the rollout shows, and the rows that they follow.

        A value is asked only of those after truncations; the others count in the statistics.
        """
        num_steps, num_envs = self.num_steps, self.num_envs
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
            for part in self._masks.split(self.stepper.source.sizes, -1):
                legal &= part.any(-1) | ~self._valid
        if not torch.stack((*wrong, ~legal.all())).any():
            return
        observations, ends, numbers, rewards, learnt, valid = to_host(
            (self._observations, boundary, rows, self._rewards, self._learnt(), self._valid)
        )
        check_finite((), learnt, self.first_step)
        check_rollout(observations, ends, numbers, rewards, self.first_step, valid, declared)
        if legal.all():  # something has been said
            return
        step, env = (~legal).nonzero()[0].tolist()
        raise nothing_legal(env, self.first_step + step)
