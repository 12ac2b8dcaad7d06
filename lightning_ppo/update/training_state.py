"""What training has come to besides the weights: counters, episode records, random states; and their checkpoints."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor

from lightning_ppo.settings.algorithm import OptimizerConfig
from lightning_ppo.settings.hyperparameters import plain, spaces_among
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.settings.trust import signature_of
from lightning_ppo.support.distributed import gather_objects, rank, world_size
from lightning_ppo.support.errors import CheckpointError
from lightning_ppo.support.randomness import derive_seeds, get_random_state, restore_generator, set_random_state
from lightning_ppo.update.budget import Budget
from lightning_ppo.update.checked_loading import CheckedLoading
from lightning_ppo.update.optimizers import check_same_kind

RETURN_WINDOW = 100
"""Training episodes, of all ranks, over which returns and lengths are averaged."""


class TrainingState(CheckedLoading, Budget):  # type: ignore[misc]
    """Keeps what training has come to, and saves and restores it with the checkpoints of a LightningModule."""

    optimizer_settings: OptimizerConfig

    def __init__(self) -> None:
        super().__init__()
        self.std_decay = 0.0
        """Log units by which the standard deviation of Gaussian actions has been lowered besides what is learnt."""
        self.action_masks = False
        """Whether the last rollout said which actions were legal; what is exported then asks for it."""
        self.recent_returns: deque[float] = deque(maxlen=RETURN_WINDOW)
        self.recent_lengths: deque[int] = deque(maxlen=RETURN_WINDOW)
        self._shuffle: torch.Generator | None = None
        self._restored_shuffle: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from, the state of its generator as plain data."""
        state = super().__getstate__()
        if self._shuffle is not None:
            state |= {"_shuffle": None, "_restored_shuffle": self._shuffle.get_state()}
        return state

    def prepare_fit(self) -> None:
        """Keep this rank's share of the window of episodes, and let `fast_dev_run` count rollouts."""
        trainer: Any = self.trainer
        if trainer.fast_dev_run:  # Lightning bounds optimizer steps, too, of which a rollout has many
            trainer.fit_loop.epoch_loop.max_steps = -1
        share = -(-RETURN_WINDOW // world_size())
        self.recent_returns = deque(self.recent_returns, maxlen=share)
        self.recent_lengths = deque(self.recent_lengths, maxlen=share)

    def decay_std(self, schedule: Schedule) -> None:
        """Bring what the standard deviation has been lowered by to where its schedule now is, before anyone acts."""
        due = schedule(self.progress)
        self.policy.head.shrink(due - self.std_decay)
        self.std_decay = due

    def shuffle_generator(self) -> torch.Generator:
        """Return the source of this rank's minibatches, on the module's device."""
        if self._shuffle is None or self._shuffle.device.type != self.device.type:
            seed = derive_seeds(torch.initial_seed() % 2**32, rank(), 1, "shuffle")[0]
            self._shuffle = torch.Generator(self.device).manual_seed(seed)
            if self._restored_shuffle is not None:
                restore_generator(self._shuffle, self._restored_shuffle, "minibatches are drawn")
                self._restored_shuffle = None
        return self._shuffle

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, episode records and random states, make settings plain data, and sign what they name."""
        for key in (pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, pl.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY):
            if key in checkpoint:
                checkpoint[key], _ = plain(checkpoint[key])
        checkpoint["ppo"] = {
            "env_steps": self.env_steps,
            "iterations": self.iterations,
            "begun_at": self.begun_at,
            "time_share": self.time_share,
            "std_decay": self.std_decay,
            "action_masks": self.action_masks,
            "ranks": gather_objects(
                {
                    "recent_returns": list(self.recent_returns),
                    "recent_lengths": list(self.recent_lengths),
                    "shuffle": self._restored_shuffle if self._shuffle is None else self._shuffle.get_state(),
                    "random": get_random_state(),
                }
            ),
        }
        checkpoint["ppo"]["signature"] = signature_of(checkpoint)

    def on_fit_end(self) -> None:
        """Send what training has come to, with the weights, to the process that launched this one, if one did."""
        super().on_fit_end()
        if isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher):
            self.register_state_dict_post_hook(_add_state)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights and, where they come from a process that was launched for a fit, what training has come to."""
        if "ppo" in state_dict:
            self.on_load_checkpoint({"ppo": state_dict["ppo"]})
        return super().load_state_dict({k: v for k, v in state_dict.items() if k != "ppo"}, *args, **kwargs)

    @classmethod
    def _arguments(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return the spaces of a checkpoint as spaces, which constructors of subclasses may need."""
        return spaces_among(checkpoint[pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take counters, episode records and, inside `fit`, random states from a checkpoint."""
        if "ppo" not in checkpoint:
            raise CheckpointError("not a checkpoint of lightning_ppo")
        state = checkpoint["ppo"]
        if self._trainer is not None and self._trainer.precision == "64-true":
            self.double()  # as Lightning does, but only after it has restored, and rounded, the weights
        self.env_steps, self.iterations = state["env_steps"], state["iterations"]
        self.begun_at = state.get("begun_at", 0)
        self.time_share = state.get("time_share", 0.0)
        self.std_decay = state.get("std_decay", 0.0)
        self.action_masks = state.get("action_masks", False)
        self.recent_returns.clear()
        self.recent_lengths.clear()
        self.policy.version = self.iterations
        same_ranks = len(state["ranks"]) == world_size()
        own = state["ranks"][rank() if same_ranks else 0]
        self.recent_returns.extend(own["recent_returns"])
        self.recent_lengths.extend(own["recent_lengths"])
        if self._trainer is not None and self._trainer.training and "optimizer_states" in checkpoint:
            hyper_parameters = checkpoint.get(pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
            check_same_kind(hyper_parameters.get("optimizer") or {}, self.optimizer_settings)
        if self._trainer is not None and self._trainer.training and same_ranks:
            self._shuffle, self._restored_shuffle = None, own["shuffle"]
            set_random_state(own["random"])


def _add_state(module: TrainingState, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    if not prefix:
        TrainingState.on_save_checkpoint(module, state_dict)
