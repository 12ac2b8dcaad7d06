"""Validation, test and prediction: what the LightningModule does besides training."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torchmetrics import CatMetric

from lightning_ppo.policy.actor_critic import ActorCritic, MaskedObservations
from lightning_ppo.rollout.shapes import Episodes, Observations


class EvaluationSteps(pl.LightningModule):
    """Takes in played episodes and logs their returns; predicts actions.

    Attributes:
        policy: The actor-critic.
        env_steps: Environment steps trained on, over all ranks: the x-axis of the logs.
    """

    policy: ActorCritic

    def __init__(self) -> None:
        super().__init__()
        self.env_steps = 0
        # the squares of large returns are beyond float32
        self.evaluation_returns = CatMetric().set_dtype(torch.float64)
        self.evaluation_lengths = CatMetric()

    def validation_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Take in the episodes of an evaluation."""
        self._take_in(episodes)

    def test_step(self, episodes: Episodes, batch_idx: int) -> None:
        """Take in the episodes of the final evaluation."""
        self._take_in(episodes)

    def predict_step(self, batch: Observations | MaskedObservations, batch_idx: int) -> Any:
        """Return deterministic actions, as the environment takes them, for a batch of observations (B, ...)."""
        if isinstance(batch, MaskedObservations):
            return self.policy.predict(batch.observations, action_masks=batch.action_masks)
        return self.policy.predict(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the evaluation under `eval/`."""
        self._log_evaluation("eval")

    def on_test_epoch_end(self) -> None:
        """Log the evaluation under `test/`."""
        self._log_evaluation("test")

    def _take_in(self, episodes: Episodes) -> None:
        self.evaluation_returns.update(episodes.returns)
        self.evaluation_lengths.update(episodes.lengths.float())

    def _log_evaluation(self, prefix: str) -> None:
        returns, lengths = (
            torch.as_tensor(m.compute()).reshape(-1) for m in (self.evaluation_returns, self.evaluation_lengths)
        )
        self.evaluation_returns.reset()
        self.evaluation_lengths.reset()
        if not returns.numel():
            return
        metrics: dict[str, Any] = {
            f"{prefix}/return_mean": returns.mean(),
            f"{prefix}/return_std": returns.std(correction=0),
            f"{prefix}/length_mean": lengths.mean(),
            f"{prefix}/episodes": float(returns.numel()),
            "step": float(self.env_steps),
        }
        # every rank has the same numbers; Lightning asks for sync_dist all the same, of a group of one, too
        ranks = dist.is_available() and dist.is_initialized()
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1, sync_dist=ranks)
