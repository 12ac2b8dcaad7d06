"""Race lightning_ppo through `train.py`, eager or compiled, in one process or two; its logging is on."""

import sys
import tempfile
from pathlib import Path

from lightning_laps import race, stopwatch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lightning_ppo.run.training import train
from lightning_ppo.settings.loading import load

if __name__ == "__main__":  # a second process imports this file
    summary = train(
        load(
            [Path(__file__).resolve().parents[2] / "configs" / "atari.yaml"] if race.is_atari else [],
            [
                *(f"env.id={race.env_id}", f"env.num_envs={race.num_envs}", f"rollout.num_steps={race.num_steps}"),
                *(f"update.epochs={race.epochs}", f"update.minibatch_size={race.minibatch_size}", f"seed={race.seed}"),
                *(f"normalize.observations={race.normalize}", f"normalize.rewards={race.normalize}"),
                *(f"total_env_steps={2 * race.total_env_steps}", "optimizer.learning_rate=3e-4", "env.backend=auto"),
                *("evaluation.episodes=0", "evaluation.final_episodes=0", "trainer.enable_checkpointing=false"),
                *("trainer.enable_progress_bar=false", f"compile={race.system.endswith('compiled')}"),
                *(["trainer.precision=32-true"] if "float32" in race.system else []),
                f"rollout.overlap={'overlapped' in race.system}",
                f"rollout.processes={2 if 'grouped' in race.system else 1}",
                *("callbacks=[lightning_laps.Laps]", f"run_dir={tempfile.mkdtemp()}"),
            ],
        )
    )
    packages = ("torch", "pytorch-lightning", "gymnasium", "numpy")
    stopwatch.report(*packages, compile_seconds=summary["compile_seconds"])
