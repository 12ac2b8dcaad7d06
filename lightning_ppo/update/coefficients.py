"""The scheduled coefficients of the loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_ppo.settings.schedules import Schedule


class Coefficients:
    """Coefficients that follow schedules over the training budget.

    Args:
        settings: Schedules of the settings, by name.
        others: Schedules that are no settings.

    Attributes:
        schedules: By name.
        values: In this iteration, by name.
        now: The same as tensors of shape (). They stay the same tensors within a fit, as compiled losses need.
    """

    def __init__(self, settings: Mapping[str, Schedule], others: Mapping[str, Schedule]) -> None:
        self.schedules = {**settings, **others}
        self.values: dict[str, float] = {}
        self.now: dict[str, Tensor] = {}
        self._settings = dict(settings)

    def adopt(self, settings: Mapping[str, Schedule]) -> None:
        """Take over what has changed in the settings since they were last seen; callbacks may change them."""
        for name in self._settings.keys() - settings.keys():
            self.schedules.pop(name, None)
            self.now.pop(name, None)
        self.schedules |= {name: new for name, new in settings.items() if self._settings.get(name) != new}
        self._settings = dict(settings)

    def matters(self, name: str) -> bool:
        """Return whether a coefficient is ever other than 0."""
        return self.schedules[name] != Schedule()

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
