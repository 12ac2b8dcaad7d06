"""The results of an evaluation."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torchmetrics import CatMetric

from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.support.distributed import gather_objects

Told = tuple[list[float], dict[str, tuple[float, int, float]]]
"""Successes of episodes, and of each info the sum over all steps, the episodes and the steps that told it."""


def told_by(episodes: Episodes) -> Told:
    """Return what episodes have told of success and infos, in sums."""
    infos = {}
    for name, sums in episodes.info_sums.items():
        known = ~sums.isnan()
        infos[name] = (float(sums[known].sum()), int(known.sum()), float(episodes.info_steps[name][known].sum()))
    return episodes.successes.tolist(), infos


def told_means(told: Iterable[Told]) -> dict[str, float]:
    """Return the success rate, and the means of all infos per episode and per step, by name; what nobody told lacks."""
    parts = list(told)
    successes = [value for own, _ in parts for value in own if value == value]
    found = {"success_rate": sum(successes) / len(successes)} if successes else {}
    for name in dict.fromkeys(name for _, infos in parts for name in infos):
        total, episodes, steps = map(sum, zip(*(infos[name] for _, infos in parts if name in infos), strict=True))
        if episodes:
            found |= {f"info/{name}_per_episode": total / episodes, f"info/{name}_per_step": total / steps}
    return found


class EvaluationResults(nn.Module):
    """Returns and lengths of the episodes of an evaluation, over all ranks; a module because metrics have a device.

    Attributes:
        env_steps: Environment steps that the evaluations so far took, over all ranks; counted by who says when to
            evaluate, kept here to be in checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self.env_steps = 0
        # the squares of large returns are beyond float32
        self.returns = CatMetric().set_dtype(torch.float64)
        self.lengths = CatMetric()
        self.told: list[Told] = []

    def add(self, episodes: Episodes) -> None:
        """Take in episodes that this rank has played."""
        self.told.append(told_by(episodes))
        self.returns.update(episodes.returns)
        self.lengths.update(episodes.lengths.float())

    def log(self, module: pl.LightningModule, prefix: str, env_steps: int) -> None:
        """Log the evaluation under `prefix`, and forget it.

        Args:
            module: At the end of a validation or test epoch.
            prefix: `eval` or `test`.
            env_steps: The x-axis of the logs.
        """
        returns, lengths = (torch.as_tensor(m.compute()).reshape(-1) for m in (self.returns, self.lengths))
        self.returns.reset()
        self.lengths.reset()
        told, self.told = [part for own in gather_objects(self.told) for part in own], []
        if not returns.numel():
            return
        metrics: dict[str, Any] = {
            f"{prefix}/return_mean": returns.mean(),
            f"{prefix}/return_std": returns.std(correction=0),
            f"{prefix}/length_mean": lengths.mean(),
            f"{prefix}/episodes": float(returns.numel()),
            "step": float(env_steps),
        }
        metrics |= {f"{prefix}/{name}": value for name, value in told_means(told).items()}
        # every rank has the same numbers; Lightning asks for sync_dist all the same, of a group of one, too
        ranks = dist.is_available() and dist.is_initialized()
        module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=ranks)
