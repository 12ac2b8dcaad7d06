"""Networks of your own: an encoder in front of the built-in layers, or the whole actor-critic.

    python examples/own_network.py              # an encoder
    python examples/own_network.py --network    # the whole network
    python examples/own_network.py --steps 2000 # a short try

Networks are named by class path, so that a checkpoint can say what it needs. On the command line, from this folder:

    lightning-ppo train policy.encoder=own_network.FourierEncoder
"""

import argparse

import gymnasium
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_ppo import PPO, RolloutDataModule

ENCODER = {"class_path": "own_network.FourierEncoder", "init_args": {"num_features": 64, "scale": 0.5}}


class FourierEncoder(nn.Module):
    """Sines and cosines of learnt projections of the observation (Tancik et al. 2020, "Fourier Features").

    It stands before the hidden layers, once in the actor and once in the critic.

    Args:
        observation_space: What the agent sees; given by `PPO`.
        num_features: Size of the output, an even number.
        scale: Standard deviation of the projections at the start.
    """

    def __init__(self, observation_space: gymnasium.Space, num_features: int = 64, scale: float = 0.5) -> None:
        super().__init__()
        self.num_features = num_features
        self.projections = nn.Linear(observation_space.shape[0], num_features // 2)
        nn.init.normal_(self.projections.weight, std=scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features (B, num_features) of normalised observations (B, size)."""
        angles = self.projections(inputs)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class SharedNetwork(nn.Module):
    """A whole actor-critic: both heads stand on the same layers.

    Args:
        observation_space: What the agent sees; given by `PPO`.
        num_outputs: What the action distribution needs; given by `PPO`.
        width: Units of each hidden layer.
    """

    def __init__(self, observation_space: gymnasium.Space, num_outputs: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(observation_space.shape[0], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.actor = nn.Linear(width, num_outputs)
        self.critic = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (B, num_outputs) and values (B,) of normalised observations (B, size)."""
        features = self.body(inputs)
        return self.actor(features), self.critic(features).squeeze(-1)


def main(total_env_steps: int = 50_000, whole_network: bool = False) -> float:
    """Train with a network of one's own and return the mean return of 20 episodes."""
    pl.seed_everything(1)
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=128, evaluation={"episodes": 0, "final_episodes": 20})
    policy = {"network": "own_network.SharedNetwork"} if whole_network else {"encoder": ENCODER, "hidden_sizes": [64]}
    model = PPO(data.observation_space, data.action_space, policy=policy, total_env_steps=total_env_steps)
    print(model.policy.network)
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    (metrics,) = trainer.test(model, data)
    return metrics["test/return_mean"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a network of your own.")
    parser.add_argument("--steps", type=int, default=50_000, help="environment steps to train for")
    parser.add_argument("--network", action="store_true", help="replace the whole network, not the encoder alone")
    options = parser.parse_args()
    main(options.steps, options.network)
