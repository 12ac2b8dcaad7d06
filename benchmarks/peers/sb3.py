"""Learning curves of Stable-Baselines3 as docs/results.md and docs/objectives.md compare with, as in learning.py.

    python benchmarks/peers/sb3.py Swimmer-v5 Reacher-v5 --seeds 1 2 3
    python benchmarks/peers/sb3.py CartPole-v1 Acrobot-v1 --algorithm dqn --total-env-steps 200000

PPO has its defaults (1 environment x 2048 steps) with VecNormalize and a learning rate of 3e-4 annealed to 0, DQN has
its defaults. A finished run's row stands in benchmarks/results/sb3.csv, of DQN or another budget in one named after
these, and its curve beside it. A killed run of PPO goes on where it was saved, one of DQN starts anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.learning import RESULTS, ROOT, RUNS, append_row, file_name, is_done, provenance, write_curve
from benchmarks.peers.environments import peer_python

BUDGET = 1_000_000


def experiment_name(algorithm: str, total_env_steps: int) -> str:
    """Return the name of the results file; runs of another algorithm or budget are kept apart."""
    parts = ["" if algorithm == "ppo" else algorithm, "" if total_env_steps == BUDGET else f"{total_env_steps}"]
    return "-".join(["sb3", *filter(None, parts)])


def run_one(python: Path, env_id: str, seed: int, algorithm: str, total_env_steps: int) -> str:
    """Train one seed unless its row exists, and append its row and curve; return what a failed run complained of."""
    experiment = experiment_name(algorithm, total_env_steps)
    name = f"{experiment} {env_id} seed {seed}"
    if is_done(experiment, env_id, seed):
        print(f"{name}: done before")
        return ""
    run_dir = RUNS / experiment / f"{file_name(env_id)}-{seed}"
    script = ROOT / "benchmarks" / "peers" / "sb3_train.py"
    print(f"{name}: running", flush=True)
    finished = subprocess.run(
        [python, script, algorithm, env_id, str(seed), str(total_env_steps), run_dir],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        print(f"{name}: failed\n{finished.stderr}", flush=True)
        return finished.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    write_curve(run_dir / "curve.csv", RESULTS / "curves" / experiment / f"{run_dir.name}.csv")
    options = "" if algorithm == "ppo" else f" --algorithm {algorithm}"
    options += "" if total_env_steps == BUDGET else f" --total-env-steps {total_env_steps}"
    command = f"python benchmarks/peers/sb3.py {env_id} --seeds {seed}{options}"
    append_row(experiment, summary | provenance(experiment, command, summary["versions"]))
    print(f"{name}: {summary['train_return_mean']:.1f}", flush=True)
    shutil.rmtree(run_dir)
    return ""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_ids", nargs="+", help="Gymnasium ids")
    parser.add_argument("--algorithm", choices=("ppo", "dqn"), default="ppo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--total-env-steps", type=int, default=BUDGET)
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    options = parser.parse_args()
    python = peer_python("sb3")
    with ThreadPoolExecutor(options.workers) as pool:
        tasks = [(env_id, seed) for seed in options.seeds for env_id in options.env_ids]
        jobs = [pool.submit(run_one, python, *task, options.algorithm, options.total_env_steps) for task in tasks]
        failures = [error for job in jobs if (error := job.result())]
    if failures:
        raise SystemExit(f"{len(failures)} of the runs failed")


if __name__ == "__main__":
    main()
