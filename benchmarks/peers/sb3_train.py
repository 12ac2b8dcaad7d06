"""Train one seed of Stable-Baselines3.

PPO has its defaults, with VecNormalize and the learning rate annealed to 0; its state is saved to RUN_DIR every 20
rollouts, from where a killed run goes on with new episodes. DQN has its defaults and starts anew: its replay buffer is
not saved. Runs in the virtual environment of `requirements-sb3.txt`, started by `sb3.py`; summary.json and curve.csv
are there at the end.
"""

import argparse
import csv
import json
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

ROLLOUT = 2048
"""Steps between two points of a curve, those of a rollout of PPO."""
ROLLOUTS_PER_SAVE = 20
EVALUATION_EPISODES = {"ppo": 10, "dqn": 100}
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")


def annealed(remaining: float) -> float:
    """Return the learning rate for the remaining share of training."""
    return 3e-4 * remaining


class Recorder(BaseCallback):
    """Keeps the learning curve and, where there is a place for it, saves what training needs to go on."""

    def __init__(self, run_dir: Path | None, curve: list[list[float]], seconds: float) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.curve = curve
        self.before = seconds
        self.started = time.perf_counter()
        self.rollouts = 0

    @property
    def seconds(self) -> float:
        """Time spent training, earlier starts included."""
        return self.before + time.perf_counter() - self.started

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # the rollout before has been trained on by now
        if self.run_dir is not None and self.rollouts and self.rollouts % ROLLOUTS_PER_SAVE == 0:
            self.save(self.run_dir)

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        if self.curve and self.num_timesteps < self.curve[-1][0] + ROLLOUT:
            return
        episodes = self.model.ep_info_buffer
        if episodes:
            self.curve.append([self.num_timesteps, float(np.mean([episode["r"] for episode in episodes]))])

    def save(self, run_dir: Path) -> None:
        """Write the state beside the old one and take its place."""
        new, state = run_dir / "saving", run_dir / "state"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        self.model.save(new / "model.zip")
        normalizer = self.model.get_vec_normalize_env()
        assert normalizer is not None
        normalizer.save(str(new / "normalizer.pkl"))
        (new / "record.json").write_text(json.dumps({"curve": self.curve, "seconds": self.seconds}))
        shutil.rmtree(state, ignore_errors=True)
        new.rename(state)


def train(algorithm: str, env_id: str, seed: int, total_env_steps: int, run_dir: Path) -> dict[str, Any]:
    """Train, or go on training, and return the summary."""
    torch.set_num_threads(1)
    state = run_dir / "state"
    env: Any = DummyVecEnv([lambda: Monitor(gymnasium.make(env_id))])
    record: dict[str, Any] = {"curve": [], "seconds": 0.0}
    if algorithm == "dqn":
        model: Any = DQN("MlpPolicy", env, seed=seed, device="cpu")
    elif state.exists():
        env = VecNormalize.load(str(state / "normalizer.pkl"), env)
        model = PPO.load(state / "model.zip", env=env, device="cpu")
        record = json.loads((state / "record.json").read_text())
    else:
        env = VecNormalize(env)
        model = PPO("MlpPolicy", env, learning_rate=annealed, seed=seed, device="cpu")
    recorder = Recorder(None if algorithm == "dqn" else run_dir, record["curve"], record["seconds"])
    # SB3 adds the steps done to those asked for
    model.learn(total_env_steps - model.num_timesteps, callback=recorder, reset_num_timesteps=False)
    seconds = recorder.seconds
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    if isinstance(env, VecNormalize):
        env.training = env.norm_reward = False
    played, _ = evaluate_policy(model, env, EVALUATION_EPISODES[algorithm], return_episode_rewards=True)
    with open(run_dir / "curve.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "rollout/return_mean"), *recorder.curve])
    return {
        "env_id": env_id,
        "seed": seed,
        "env_steps": model.num_timesteps,
        "train_return_mean": float(np.mean(returns)),
        "train_return_std": float(np.std(returns)),
        "eval_return_mean": float(np.mean(played)),
        "eval_return_std": float(np.std(played)),
        "eval_episodes": len(played),
        "env_steps_per_second": model.num_timesteps / seconds,
        "wall_seconds": seconds,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("algorithm", choices=("ppo", "dqn"))
    parser.add_argument("env_id")
    parser.add_argument("seed", type=int)
    parser.add_argument("total_env_steps", type=int)
    parser.add_argument("run_dir", type=Path)
    options = parser.parse_args()
    options.run_dir.mkdir(parents=True, exist_ok=True)
    summary = train(options.algorithm, options.env_id, options.seed, options.total_env_steps, options.run_dir)
    (options.run_dir / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
