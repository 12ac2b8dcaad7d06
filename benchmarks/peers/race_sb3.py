"""Race Stable-Baselines3, or its JAX version SBX: default networks, its Atari wrappers, logging to CSV on."""

import importlib
import tempfile
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from stopwatch import Stopwatch, read_race


class Laps(BaseCallback):
    """Laps where a rollout starts, which is after the update before."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.stopwatch = stopwatch
        self.first = True

    def _on_rollout_start(self) -> None:
        if not self.first:
            self.stopwatch.lap()
        self.first = False

    def _on_step(self) -> bool:
        return True


race = read_race()
stopwatch = Stopwatch(race.env_steps_per_iteration)
torch.set_num_threads(race.cores)
package = {"sb3": "stable_baselines3", "sbx": "sbx"}[race.system]
env: Any
if race.is_atari:
    importlib.import_module("ale_py")
    # the identifiers of v5 repeat actions at random, of which the protocol raced here knows nothing
    settings = {"frameskip": 1, "repeat_action_probability": 0.0}
    env = VecFrameStack(make_atari_env(race.env_id, race.num_envs, seed=race.seed, env_kwargs=settings), 4)
else:
    env = make_vec_env(race.env_id, race.num_envs, seed=race.seed)
if race.normalize:
    env = VecNormalize(env)
model = importlib.import_module(package).PPO(
    "CnnPolicy" if race.is_atari else "MlpPolicy",
    env,
    n_steps=race.num_steps,
    batch_size=race.minibatch_size,
    n_epochs=race.epochs,
    seed=race.seed,
    device="cpu",
)
model.set_logger(configure(tempfile.mkdtemp(), ["csv"]))
model.learn(race.total_env_steps, callback=Laps(stopwatch))
stopwatch.lap()
if race.system == "sbx":
    stopwatch.report("sbx-rl", "jax", "stable-baselines3", "gymnasium", "numpy")
else:
    stopwatch.report("stable-baselines3", "torch", "gymnasium", "numpy")
