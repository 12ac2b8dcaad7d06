"""Learning curves of Stable-Baselines3's PPO as docs/results.md compares with, resumable as in learning.py.

    python benchmarks/peers/sb3.py Swimmer-v5 Reacher-v5 --seeds 1 2 3

Its defaults (1 environment x 2048 steps) with VecNormalize and a learning rate of 3e-4 annealed to 0. A finished run's
row stands in benchmarks/results/sb3.csv and its curve beside it.
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
from benchmarks.learning import RESULTS, ROOT, RUNS, append_row, is_done, provenance, write_curve
from benchmarks.peers.environments import peer_python

EXPERIMENT = "sb3"


def run_one(python: Path, env_id: str, seed: int, total_env_steps: int) -> None:
    """Train one seed unless its row exists, and append its row and curve."""
    name = f"{EXPERIMENT} {env_id} seed {seed}"
    if is_done(EXPERIMENT, env_id, seed):
        print(f"{name}: done before")
        return
    run_dir = RUNS / EXPERIMENT / f"{env_id.replace('/', '_')}-{seed}"
    script = ROOT / "benchmarks" / "peers" / "sb3_train.py"
    print(f"{name}: running", flush=True)
    finished = subprocess.run(
        [python, script, env_id, str(seed), str(total_env_steps), run_dir],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        print(f"{name}: failed\n{finished.stderr}", flush=True)
        return
    summary = json.loads((run_dir / "summary.json").read_text())
    write_curve(run_dir / "curve.csv", RESULTS / "curves" / EXPERIMENT / f"{run_dir.name}.csv")
    steps = "" if total_env_steps == 1_000_000 else f" --total-env-steps {total_env_steps}"
    command = f"python benchmarks/peers/sb3.py {env_id} --seeds {seed}{steps}"
    append_row(EXPERIMENT, summary | provenance(EXPERIMENT, command, summary["versions"]))
    print(f"{name}: {summary['train_return_mean']:.1f}", flush=True)
    shutil.rmtree(run_dir)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_ids", nargs="+", help="Gymnasium ids")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--total-env-steps", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    options = parser.parse_args()
    python = peer_python("sb3")
    with ThreadPoolExecutor(options.workers) as pool:
        tasks = [(env_id, seed) for seed in options.seeds for env_id in options.env_ids]
        for job in [pool.submit(run_one, python, *task, options.total_env_steps) for task in tasks]:
            job.result()


if __name__ == "__main__":
    main()
