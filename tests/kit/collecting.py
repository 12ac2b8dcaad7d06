"""What collects: in this process, beside learning, in several processes."""

import copy
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.rollout.shapes import Minibatch
from lightning_ppo.settings.algorithm import NormalizeConfig, RolloutConfig
from lightning_ppo.settings.networks import PolicyConfig
from tests.kit.training import SETTINGS


def transitions(observations: Any, actions: torch.Tensor, **fields: Any) -> Minibatch:
    """Return B observed actions as a minibatch whose other fields are zeros, or as given."""
    zeros = torch.zeros(len(actions))
    return Minibatch(observations, actions, zeros, zeros, zeros, zeros, zeros, zeros + 1.0)._replace(**fields)


def linear_policy(env, weight=1.0, bias=0.0, normalize=False):
    """Return a policy whose value is `weight` x (sum of the observation) + `bias`."""
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        PolicyConfig(hidden_sizes=[]),
        NormalizeConfig(observations=normalize, rewards=False),
    )
    with torch.no_grad():
        policy.network.critic_output.weight.fill_(weight)
        policy.network.critic_output.bias.fill_(bias)
    return policy


def collector(env, policy, num_steps, seed=0):
    return Collector(env, policy, num_steps, torch.Generator().manual_seed(seed), list(range(env.num_envs)))


def stream(env, policy, num_steps, gamma, gae_lambda):
    settings = RolloutConfig(num_steps, gamma, gae_lambda)
    return RolloutStream(collector(env, policy, num_steps), settings, 1, normalize=False)


class Snapshots(pl.Callback):
    """Keeps a copy of the policy as it was at each version, and the lag that was logged."""

    def __init__(self) -> None:
        self.policies, self.lags = [], []

    def on_train_start(self, trainer, module):
        self.policies.append(copy.deepcopy(module.policy).eval())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.policies.append(copy.deepcopy(module.policy).eval())
        self.lags.append(float(trainer.callback_metrics["rollout/policy_lag"]))


def build(env="CartPole-v1", model=PPO, overlap=True, rollouts_per_epoch=2, env_settings=(), processes=1, **kwargs):
    pl.seed_everything(5, verbose=False)
    data = RolloutDataModule(
        {"id": env, "num_envs": 4, **dict(env_settings)},
        num_steps=16,
        rollouts_per_epoch=rollouts_per_epoch,
        evaluation={"episodes": 2, "num_envs": 2},
        overlap=overlap,
        processes=processes,
        seed=5,
    )
    return model(data.observation_space, data.action_space, **(SETTINGS | kwargs)), data
