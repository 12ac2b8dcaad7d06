"""A loss of your own: subclass `PPO` and override one method.

    python examples/own_loss.py                 # about 10 seconds
    python examples/own_loss.py --steps 2000    # a short try

`policy_loss` returns the loss of each transition. `minibatch_loss` is the whole loss with value and entropy terms, and
`configure_optimizers` the optimizer; they are overridden in the same way. A loss that is to be named in a config is a
`PolicyObjective` or a `LossTerm`: docs/objectives.md.
"""

import argparse
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from lightning_ppo import PPO, RolloutDataModule


class SimplePolicyOptimization(PPO):
    """Keeps ratios near 1 by a quadratic penalty instead of clipping (Xie et al. 2024, arXiv:2401.16025).

    It maximises r A - |A| (r - 1)^2 / (2 epsilon), whose maximum lies at r = 1 + epsilon for A > 0 and at
    r = 1 - epsilon for A < 0, and whose gradient does not vanish beyond.
    """

    epsilon = 0.2

    def policy_loss(self, terms: Any) -> Tensor:
        """Return the policy loss of each transition, (B,)."""
        ratios = terms.log_ratios.exp()
        penalties = terms.advantages.abs() * (ratios - 1.0).square() / (2.0 * self.epsilon)
        return penalties - ratios * terms.advantages


def main(total_env_steps: int = 50_000) -> float:
    """Train with the loss and return the mean return of 20 episodes."""
    pl.seed_everything(1)
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=128, evaluation={"episodes": 0, "final_episodes": 20})
    model = SimplePolicyOptimization(data.observation_space, data.action_space, total_env_steps=total_env_steps)
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    (metrics,) = trainer.test(model, data)
    return metrics["test/return_mean"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train with a loss of your own.")
    parser.add_argument("--steps", type=int, default=50_000, help="environment steps to train for")
    main(parser.parse_args().steps)
