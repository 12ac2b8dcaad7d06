"""The learning rate: set by PPO, unless somebody else has set it."""

import math
from collections.abc import Sequence

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_ppo.settings.schedules import Schedule


class SteeredLearningRate(LRScheduler):
    """Hands the learning rate that PPO computes to the optimizer, where Lightning's callbacks look for it.

    A rate that somebody else has set is used. A constant schedule leaves it as it is, one that is steered goes on from
    there, and any other one sets its own again for the next iteration.

    Attributes:
        value: The rate without its bound.
        used: The rate that was set last.
        factors: Factor of each parameter group.

    Args:
        optimizer: Of the parameters.
        value: The rate.
        factors: Factor of each parameter group.
    """

    def __init__(self, optimizer: Optimizer, value: float, factors: Sequence[float]) -> None:
        self.value = self.used = value
        self.factors = list(factors)
        self._told = False
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of every parameter group."""
        return [self.used * factor for factor in self.factors]

    def keep_proportions(self) -> None:
        """Let the parameter groups keep the ratios that their rates now have."""
        if self.used:
            self.factors = [float(group["lr"]) / self.used for group in self.optimizer.param_groups]

    def use_factors(self, factors: Sequence[float]) -> None:
        """Take other factors than a checkpoint has brought back."""
        if list(factors) != self.factors:
            self.factors = list(factors)
            self._set(self.value, self.used)

    def follow(self, schedule: Schedule, progress: float) -> None:
        """Set the rate of an iteration, unless it has been set by hand; the bound of an adaptive rate moves."""
        value = self.value if schedule.adaptive else schedule(progress)
        if not self.set_by_hand() or (schedule.kind == "constant" and value != self.used):
            self._set(value, schedule.bound(progress))
            return
        if schedule.adaptive:
            self.value = self.used = float(self.optimizer.param_groups[0]["lr"]) / (self.factors[0] or 1.0)
        if schedule.kind != "constant" and not self._told:
            self._told = True
            then = "continues from it, within its bounds" if schedule.adaptive else "sets that of the next"
            rank_zero_warn(
                f"the learning rate set by hand is used for an iteration, and optimizer.learning_rate "
                f"({schedule.kind}) {then}; where that is a number, a rate set by hand stays"
            )

    def finish(self, schedule: Schedule, progress: float, kl: float) -> None:
        """Reset the rate at the end of an iteration; an adaptive one follows the KL divergence."""
        if schedule.adaptive:
            self._set(schedule.steer(self.value, kl, self.used), schedule.bound(progress))
        elif schedule.kind != "constant":
            self._set(self.value, self.used)

    def set_by_hand(self) -> bool:
        """Return whether a rate has been changed since it was set here."""
        rates = zip(self.optimizer.param_groups, self.get_lr(), strict=False)
        return not all(math.isclose(float(group["lr"]), rate, rel_tol=1e-6) for group, rate in rates)

    def _set(self, value: float, bound: float) -> None:
        self.value, self.used = value, min(value, bound)
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
