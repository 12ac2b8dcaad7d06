"""Race SheepRL, started through its own command line.

Its actor and critic share an encoder: one layer of 64 units, then one of 64 for each of the two, which is less work
than the two separate 64x64 networks of the other racers. It normalises neither observations nor rewards.
"""

import sys
import tempfile
import warnings

import sheeprl.algos.ppo.ppo as sheeprl_ppo
from sheeprl.cli import run
from stopwatch import Stopwatch, read_race

race = read_race()
stopwatch = Stopwatch(race.env_steps_per_iteration)
train = sheeprl_ppo.train


def timed_train(*args: object, **kwargs: object) -> object:
    """Train on a rollout and lap."""
    result = train(*args, **kwargs)
    stopwatch.lap()
    return result


sheeprl_ppo.train = timed_train
folder = tempfile.mkdtemp()
steps_per_iteration = race.num_envs * race.num_steps
sys.argv = [
    "sheeprl",
    *("exp=ppo", f"env.id={race.env_id}", f"env.num_envs={race.num_envs}", f"seed={race.seed}", "num_threads=1"),
    *("env.sync_env=True", "env.capture_video=False", "fabric.accelerator=cpu", "fabric.devices=1"),
    *(f"algo.total_steps={race.total_env_steps}", f"algo.rollout_steps={race.num_steps}"),
    *(f"algo.per_rank_batch_size={race.minibatch_size}", f"algo.update_epochs={race.epochs}"),
    *("algo.encoder.mlp_layers=1", "algo.encoder.mlp_features_dim=null"),
    *("algo.actor.mlp_layers=1", "algo.critic.mlp_layers=1", "algo.dense_units=64"),
    *("algo.max_grad_norm=0.5", "algo.normalize_advantages=True", "algo.optimizer.lr=3e-4", "algo.run_test=False"),
    *("buffer.memmap=False", "checkpoint.every=0", "checkpoint.save_last=False"),
    *(f"metric.log_every={steps_per_iteration}", f"log_root={folder}", f"hydra.run.dir={folder}"),
]
warnings.simplefilter("ignore")
run()
stopwatch.report("sheeprl", "torch", "gymnasium", "numpy")
