"""The results of an evaluation."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torchmetrics import CatMetric

from lightning_ppo.rollout.shapes import Episodes


class EvaluationResults(nn.Module):
    """Returns and lengths of the episodes of an evaluation, over all ranks; a module because metrics have a device."""

    def __init__(self) -> None:
        super().__init__()
        # the squares of large returns are beyond float32
        self.returns = CatMetric().set_dtype(torch.float64)
        self.lengths = CatMetric()

    def add(self, episodes: Episodes) -> None:
        """Take in episodes that this rank has played."""
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
        if not returns.numel():
            return
        metrics: dict[str, Any] = {
            f"{prefix}/return_mean": returns.mean(),
            f"{prefix}/return_std": returns.std(correction=0),
            f"{prefix}/length_mean": lengths.mean(),
            f"{prefix}/episodes": float(returns.numel()),
            "step": float(env_steps),
        }
        # every rank has the same numbers; Lightning asks for sync_dist all the same, of a group of one, too
        ranks = dist.is_available() and dist.is_initialized()
        module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=ranks)
