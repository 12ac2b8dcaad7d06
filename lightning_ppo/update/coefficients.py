"""The scheduled coefficients of the loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_ppo.settings.schedules import Schedule


class Coefficients:
    """Coefficients that follow schedules over the training budget.

    Attributes:
        schedules: By name.
        values: In this iteration, by name.
        now: The same as tensors of shape (). They stay the same tensors within a fit, as compiled losses need.
    """

    def __init__(self, schedules: Mapping[str, Schedule]) -> None:
        self.schedules = dict(schedules)
        self.values: dict[str, float] = {}
        self.now: dict[str, Tensor] = {}

    def follow(self, progress: float, device: torch.device) -> None:
        """Set the coefficients to where their schedules are at `progress`."""
        self.values = {name: schedule(progress) for name, schedule in self.schedules.items()}
        for name, value in self.values.items():
            if name not in self.now:
                self.now[name] = torch.tensor(value, device=device)
            self.now[name].fill_(value)

    def forget(self) -> None:
        """Release the tensors; the next fit may be on another device."""
        self.now.clear()
