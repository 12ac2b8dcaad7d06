"""The order in which a rollout's transitions are learnt from."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Minibatch, shuffled_indices
from lightning_ppo.support.distributed import mean_over_ranks, rank
from lightning_ppo.support.randomness import derive_seeds, restore_generator


class Order(NamedTuple):
    """M shuffled minibatches of B rows, for one epoch."""

    rows: Tensor
    """(M, B)."""
    scales: Tensor
    """(M,), factors of the weights of each minibatch: a loss is a mean over its valid rows on all ranks."""
    weights: Tensor
    """(M, B), multiplied by the scales."""


class Shuffle:
    """Shuffles the rows of rollouts, with its own generator, made when it is first needed."""

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._restored: Tensor | None = None

    def __call__(self, batch: Minibatch, minibatch_size: int, sequence_length: int) -> Order:
        """Return an order of minibatches of B rows in which sequences of L rows stay together; all ranks call it."""
        generator = self._generator_on(batch.weights.device)
        rows = shuffled_indices(len(batch.weights), minibatch_size, generator, sequence_length)
        weights = batch.weights[rows]
        scales = mean_over_ranks(weights.sum(1)).clamp(min=1.0).reciprocal()
        return Order(rows, scales, weights * scales.unsqueeze(1))

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device.type != device.type:
            seed = derive_seeds(torch.initial_seed() % 2**32, rank(), 1, "shuffle")[0]
            self._generator = torch.Generator(device).manual_seed(seed)
            if self._restored is not None:
                restore_generator(self._generator, self._restored, "minibatches are drawn")
                self._restored = None
        return self._generator

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from: the state as plain data."""
        return {"_generator": None, "_restored": self.get_state()}

    def get_state(self) -> Tensor | None:
        """Return the state to continue from, if there is one yet."""
        return self._restored if self._generator is None else self._generator.get_state()

    def set_state(self, state: Tensor | None) -> None:
        """Continue from a saved state."""
        self._generator, self._restored = None, state
