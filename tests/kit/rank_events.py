"""Two ranks on which different things happen.

An event happens on one rank only, or concerns what ranks must share out. What the ranks made of it is in the files
OUT.RANK.
"""

import logging
import os
import random
import signal
import time

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.run.stopping import GracefulStop, Interrupted
from lightning_ppo.support import notices
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


class Tenth(gymnasium.RewardWrapper):
    """A tenth of the reward."""

    def reward(self, reward):
        return reward / 10


class Draws(Count):
    """Shows one number of each global generator, and those that it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0.0, 1.0, (6,), np.float64)
        self.built = self.drawn()

    def drawn(self):
        return [random.random(), np.random.random(), float(torch.rand(1, dtype=torch.float64))]

    def _observation(self):
        return np.array(self.drawn() + self.built)


class First(pl.Callback):
    """Keeps the first rollout, and what is said."""

    def __init__(self) -> None:
        self.rollout, self.said = None, []

    def setup(self, trainer, module, stage):
        self.handler = logging.Handler(logging.WARNING)
        self.handler.emit = lambda record: self.said.append(record.getMessage())
        logging.getLogger("lightning_ppo").addHandler(self.handler)

    def teardown(self, trainer, module, stage):
        logging.getLogger("lightning_ppo").removeHandler(self.handler)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rollout = self.rollout or {
            "observations": batch.observations.clone(),
            "truncations": batch.truncations.clone(),
            "rewards": batch.rewards.clone(),
        }


class Different(PPO):
    """Sees another divergence, summed over the rows, or another loss, on one of the ranks."""

    event = ""

    def divergence(self, batch):
        divergence = super().divergence(batch)
        return divergence + 1000.0 * (self.event == "divergence on rank 0" and RANK == 0)

    def policy_loss(self, terms):
        loss = super().policy_loss(terms)
        return loss * float("nan") if self.event == "nan on rank 1" and RANK == 1 and self.iterations == 2 else loss


def run(event: str, env: type[gymnasium.Env] | str | dict = Count, **settings) -> dict:
    pl.seed_everything(3, verbose=False)
    notices.forget()
    rollout = {"num_envs": 2, "num_steps": 16, "rollouts_per_epoch": 4, "stagger": False}
    env = f"{__name__}:{env.__name__}" if isinstance(env, type) else env
    data = RolloutDataModule(env, **{"seed": 3, **rollout, **settings})
    update = {"epochs": 3, "minibatch_size": 16, "target_kl": 1.0}
    model = Different(data.observation_space, data.action_space, update=update, normalize={"rewards": False})
    model.event = event
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    first = First()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        enable_model_summary=False,
        **quiet,
        callbacks=[GracefulStop(None), first],
    )
    error = ""
    try:
        trainer.fit(model, data)
    except (UserError, Interrupted) as problem:
        error = f"{type(problem).__name__}: {problem}"
    weights = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    returns = {name: float(x) for name, x in trainer.callback_metrics.items() if name.endswith("return_mean")}
    found = {"error": error, "steps": trainer.global_step, "weights": torch.from_numpy(weights), "returns": returns}
    return found | {"own returns": list(model.recent_returns), "rollout": first.rollout, "said": first.said}


WAYS = {"sync": {"backend": "sync"}, "async": {"backend": "async"}, "overlap": {"backend": "sync", "overlap": True}}


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
    wrapped = {"id": f"{__name__}:Count", "wrappers": [f"{__name__}.Tenth"]}
    for way, settings in WAYS.items():
        found[f"wrapped rewards, {way}"] = run("", wrapped, evaluation={"episodes": 3}, **settings)
        found[f"draws, {way}"] = run("", Draws, evaluation={"episodes": 0}, **settings)
        limited = {"id": "CartPole-v1", "max_episode_steps": 8}
        found[f"phases, {way}"] = run("", limited, num_envs=4, stagger=True, evaluation={"episodes": 0}, **settings)
    native = {"id": "CartPole-v1", "backend": "vector", "kwargs": {"max_episode_steps": 8}}
    found["phases, vector"] = run("", native, num_envs=4, stagger=True, evaluation={"episodes": 0})
    torch.save(found, f"{out}.{RANK}")
