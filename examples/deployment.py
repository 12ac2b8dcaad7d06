"""Deployment: train an agent, export it to one file, and act from that file without this package.

    python examples/deployment.py                               # train, export, act
    python examples/deployment.py --steps 2000                  # a short try
    python examples/deployment.py --checkpoint last.ckpt        # export a CartPole agent that you have
    python examples/deployment.py --act agent.pt2               # act only; lightning_ppo need not be installed

The file holds normaliser, network and action head: observations go in as the environment gives them, and actions come
out as it takes them. `--format onnx` of `lightning-ppo export` writes it for ONNX Runtime instead.
"""

import argparse
from pathlib import Path

import gymnasium
import torch


def train(checkpoint: Path, total_env_steps: int) -> None:
    """Train an agent and save it."""
    import pytorch_lightning as pl

    from lightning_ppo import PPO, RolloutDataModule

    pl.seed_everything(1)
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=128, evaluation={"episodes": 0})
    model = PPO(data.observation_space, data.action_space, total_env_steps=total_env_steps)
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    trainer.save_checkpoint(checkpoint)


def export(checkpoint: Path, agent: Path) -> None:
    """Write what `lightning-ppo export CHECKPOINT --format torch --output AGENT` writes."""
    from lightning_ppo import cli

    code = cli.main(["export", str(checkpoint), "--format", "torch", "--output", str(agent)])
    if code != 0:
        raise SystemExit(code)


def act(agent: Path, env_id: str = "CartPole-v1", episodes: int = 5) -> list[float]:
    """Play episodes with an exported agent and return their returns; it needs torch and the environment."""
    policy = torch.export.load(agent).module(check_guards=False)
    env = gymnasium.make(env_id)
    returns = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            with torch.no_grad():
                (actions,) = policy(torch.as_tensor(observation).unsqueeze(0))  # a batch of one observation
            observation, reward, terminated, truncated, _ = env.step(actions[0].numpy())
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def main(folder: Path, total_env_steps: int = 30_000, checkpoint: Path | None = None) -> list[float]:
    """Train unless there is a checkpoint, export, act, and return the returns."""
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        checkpoint = folder / "agent.ckpt"
        train(checkpoint, total_env_steps)
    export(checkpoint, folder / "agent.pt2")
    return act(folder / "agent.pt2")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export an agent and act with the file.")
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps to train for")
    parser.add_argument("--folder", type=Path, default=Path("runs/deployment"), help="where files go (runs/deployment)")
    parser.add_argument("--checkpoint", type=Path, help="export this checkpoint instead of training")
    parser.add_argument("--act", type=Path, metavar="FILE", help="only act with an exported file")
    options = parser.parse_args()
    played = act(options.act) if options.act else main(options.folder, options.steps, options.checkpoint)
    print("returns:", played)
