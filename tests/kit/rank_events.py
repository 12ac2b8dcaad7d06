"""Two ranks on which different things happen.

Each event happens on one rank only. Whether the ranks still do the same is what the files OUT.RANK tell.
"""

import os
import signal
import time

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.run.stopping import GracefulStop, Interrupted
from lightning_ppo.support.errors import UserError
from tests.kit.envs import Count

RANK = int(os.environ.get("RANK", 0))


class Slow(Count):
    """Takes its time on rank 0."""

    def step(self, action):
        time.sleep(0.01 * (RANK == 0))
        return super().step(action)


class Endless(Count):
    """Ends episodes on rank 0 only."""

    def __init__(self) -> None:
        super().__init__(length=4 if RANK == 0 else 10**9)


class Failing(Count):
    """Raises on rank 1."""

    def __init__(self) -> None:
        super().__init__(length=100)

    def step(self, action):
        if RANK == 1 and self.t == 20:
            raise OSError("the cable was pulled")
        return super().step(action)


class Impatient(Count):
    """Somebody presses Ctrl-C at rank 1 in its second rollout."""

    pressed = False

    def __init__(self) -> None:
        super().__init__(length=100)

    def step(self, action):
        if RANK == 1 and self.t == 20 and not Impatient.pressed:
            Impatient.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(action)


class Different(PPO):
    """Sees another divergence, summed over the rows, or another loss, on one of the ranks."""

    event = ""

    def divergence(self, batch):
        divergence = super().divergence(batch)
        return divergence + 1000.0 * (self.event == "divergence on rank 0" and RANK == 0)

    def policy_loss(self, terms):
        loss = super().policy_loss(terms)
        return loss * float("nan") if self.event == "nan on rank 1" and RANK == 1 and self.iterations == 2 else loss


def run(event: str, env: type[gymnasium.Env] = Count, **settings) -> dict:
    pl.seed_everything(3, verbose=False)
    rollout = {"num_envs": 2, "num_steps": 16, "rollouts_per_epoch": 4}
    data = RolloutDataModule(f"{__name__}:{env.__name__}", seed=3, **rollout, **settings)
    update = {"epochs": 3, "minibatch_size": 16, "target_kl": 1.0}
    model = Different(data.observation_space, data.action_space, update=update)
    model.event = event
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        enable_model_summary=False,
        **quiet,
        callbacks=[GracefulStop(None)],
    )
    error = ""
    try:
        trainer.fit(model, data)
    except (UserError, Interrupted) as problem:
        error = f"{type(problem).__name__}: {problem}"
    weights = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    returns = float(trainer.callback_metrics.get("rollout/return_mean", float("nan")))
    return {"error": error, "steps": trainer.global_step, "weights": torch.from_numpy(weights), "return": returns}


def main(out: str) -> None:
    torch.set_num_threads(1)
    found = {
        "nothing": run("nothing"),
        "slow environment on rank 0": run("", Slow),
        "no episode ends on rank 1": run("", Endless, evaluation={"episodes": 0}),
        "divergence on rank 0": run("divergence on rank 0"),
        "nan on rank 1": run("nan on rank 1"),
        "environment fails on rank 1": run("", Failing, evaluation={"episodes": 0}),
        "Ctrl-C on rank 1": run("", Impatient, evaluation={"episodes": 0}),
        "other settings on rank 1": run("", gamma=(0.9, 0.95)[RANK]),
    }
    torch.save(found, f"{out}.{RANK}")
