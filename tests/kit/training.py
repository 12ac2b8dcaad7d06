"""Agents with data and a Trainer, and agents that keep what they see."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.rollout.shapes import Rollout
from lightning_ppo.update.reports import MinibatchReport

FIRST_ORDER = ("clip", "policy_gradient", "surrogate", "kl_penalty", "adaptive_kl")
"""Objectives that take gradient steps."""

SETTINGS = {
    "update": {"epochs": 2, "minibatch_size": 16, "clip_range": {"kind": "linear", "start": 0.3, "end": 0.1}},
    "optimizer": {"learning_rate": {"kind": "adaptive_kl", "start": 1e-3, "target_kl": 1e-9}},
    "total_env_steps": 1000,
}
"""Of agents whose clip range and learning rate depend on what was done before."""

eager_and_compiled = pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.compiled)], ids=["eager", "compiled"]
)


def make_trainer(**kwargs) -> pl.Trainer:
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return pl.Trainer(**(defaults | kwargs))


def make_pair(env: str = "CartPole-v1", model: type[PPO] = PPO, rollouts_per_epoch: int = 1, **kwargs):
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule(env=env, num_envs=4, num_steps=16, rollouts_per_epoch=rollouts_per_epoch)
    settings = {"update": {"epochs": 2, "minibatch_size": 16}} | kwargs
    return model(data.observation_space, data.action_space, **settings), data


class Recording(PPO):
    """Keeps what every minibatch reports, and the rollouts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.reports: list[MinibatchReport] = []
        self.log_ratios: list[torch.Tensor] = []
        self.rollouts: list[Rollout] = []

    def policy_loss(self, terms):
        self.log_ratios.append(terms.log_ratios.detach().clone())
        return super().policy_loss(terms)

    def minibatch_loss(self, minibatch):
        loss, reported = super().minibatch_loss(minibatch)
        self.reports.append(reported)
        return loss, reported

    def training_step(self, rollout, batch_idx):
        self.rollouts.append(rollout)
        super().training_step(rollout, batch_idx)


def sharpen(model: PPO) -> None:
    """Scale the policy head until logits are about +-10, where rounding them would show."""
    torch.nn.init.orthogonal_(model.policy.network.actor_output.weight, 10.0)


class Weighted(PPO):
    """Its policy loss is a number that a callback changes."""

    weight = 1.0

    def policy_loss(self, terms):
        return super().policy_loss(terms) * 0.0 + self.weight


class Heavier(pl.Callback):
    """Adds to the weight after each iteration, and keeps the losses."""

    def __init__(self, *additions: float) -> None:
        self.additions = additions
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, module, *_):
        module.weight += self.additions[len(self.seen)]
        self.seen.append(float(trainer.callback_metrics["loss/policy"]))


class Watched(PPO):
    """Keeps what was logged."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.logged: list[dict[str, float]] = []

    def log_dict(self, dictionary, *args, **kwargs):
        self.logged.append({name: float(value) for name, value in dictionary.items()})
        super().log_dict(dictionary, *args, **kwargs)


def train(env: str = "Pendulum-v1", rollouts: int = 4, precision: str = "32-true", **kwargs) -> Watched:
    settings = {"objective": "trpo", "update": {"minibatch_size": 16}} | kwargs
    model, data = make_pair(env, Watched, rollouts_per_epoch=rollouts, **settings)
    make_trainer(precision=precision).fit(model, data)
    return model


def learn(env, num_steps, iterations, **settings) -> PPO:
    data = RolloutDataModule(env=env, num_steps=num_steps, rollouts_per_epoch=iterations, gamma=settings.pop("gamma"))
    model = PPO(data.observation_space, data.action_space, **settings)
    make_trainer().fit(model, data)
    return model


def with_validation(env: str = "CartPole-v1", rollouts_per_epoch: int = 2, model: type[PPO] = PPO, **kwargs):
    pl.seed_everything(3, verbose=False)
    evaluation = {"episodes": 2, "final_episodes": 3, "num_envs": 2}
    data = RolloutDataModule(
        env=env, num_envs=4, num_steps=16, rollouts_per_epoch=rollouts_per_epoch, evaluation=evaluation, seed=3
    )
    settings = {"update": {"epochs": 2, "minibatch_size": 16}} | kwargs
    return model(data.observation_space, data.action_space, **settings), data
