"""One rank of a training whose callback changes environments and whose environments tell something."""

import os

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule

WORLD, RANK = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
ENVS = 4


class Telling(gymnasium.Env):
    """Pays its level, and tells it with a number that is drawn for each episode."""

    def __init__(self):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.level, self.t, self.luck = 0.0, 0, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.luck = 0, self.np_random.random()
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        told = {"level": self.level, "luck": self.luck, "is_success": self.luck > 0.5}
        return np.zeros(1, np.float32), float(self.level), False, self.t == 3, told


class Harder(pl.Callback):
    """Sets the level to the number of iterations, on all ranks or, wrongly, on the first alone."""

    def __init__(self, everywhere: bool) -> None:
        self.everywhere = everywhere
        self.rewards: list[torch.Tensor] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rewards.append(batch.rewards.clone())
        found = trainer.callback_metrics.items()
        self.metrics.append({k: float(v) for k, v in found if k.startswith(("rollout/info", "rollout/success"))})
        if self.everywhere or RANK == 0:
            trainer.datamodule.set_attr("level", float(module.iterations), evaluation=True)


def main(out: str, everywhere: bool = True) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(5, verbose=False)
    own = ENVS // WORLD
    data = RolloutDataModule(
        Telling,
        num_envs=own,
        num_steps=8,
        rollouts_per_epoch=3,
        evaluation={"episodes": 4, "num_envs": 2},
        log_info=["level", "luck"],
        stagger=False,
        seed=5,
    )
    model = PPO(
        data.observation_space, data.action_space, update={"minibatch_size": own * 8, "epochs": 1}, compile=False
    )
    harder = Harder(everywhere)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp" if WORLD > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[harder],
    )
    trainer.fit(model, data)
    evaluated = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("eval/")}
    torch.save({"rewards": harder.rewards, "metrics": harder.metrics, "eval": evaluated}, f"{out}.{RANK}")
