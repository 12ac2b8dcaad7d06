"""Step the environments as lightning_ppo builds them, with random actions and no learning."""

import sys
from pathlib import Path

from stopwatch import Stopwatch, read_race

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lightning_ppo.envs import make_vector_env
from lightning_ppo.settings.environment import EnvConfig

race = read_race()
stopwatch = Stopwatch(race.env_steps_per_iteration)
env = make_vector_env(EnvConfig(race.env_id, race.num_envs, stagger=False))
env.reset(seed=race.seed)
env.action_space.seed(race.seed)
actions = [env.action_space.sample() for _ in range(race.num_steps)]
for _ in range(race.iterations):
    for action in actions:
        env.step(action)
    stopwatch.lap()
stopwatch.report("gymnasium", "numpy")
