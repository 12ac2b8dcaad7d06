"""When compiling pays: what it takes at first and from the compiler's cache, and what it saves per optimizer step.

Each run is a training of HalfCheetah-v5 (8 x 256, 10 epochs x 32 minibatches of 64) through `train.py` on one core. The
first compiled run of a round has an empty cache on disk, the second that of the first.

    python benchmarks/compiling.py --rounds 3
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS = (
    *("configs/halfcheetah.yaml", "env.num_envs=8", "rollout.num_steps=256", "update.minibatch_size=64"),
    *("evaluation.episodes=0", "evaluation.final_episodes=0", "trainer.enable_progress_bar=false"),
)


def train(iterations: int, compiled: bool, cache: str) -> dict[str, float]:
    """Return the summary of a training."""
    with tempfile.TemporaryDirectory() as folder:
        more = (f"total_env_steps={2048 * iterations}", f"compile={compiled}", f"run_dir={folder}/run")
        subprocess.run(
            [sys.executable, "train.py", *SETTINGS, *more],
            cwd=ROOT,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return json.loads((Path(folder) / "run" / "summary.json").read_text())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--iterations", type=int, default=10, help="of each training (default: 10)")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"uncompiled": [], "compiled at first": [], "compiled again": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name, runs in found.items():
                runs.append(train(options.iterations, name != "uncompiled", cache))
    steps = {
        name: statistics.median(run["update_seconds"] / run["optimizer_steps"] for run in runs)
        for name, runs in found.items()
    }
    saved = steps["uncompiled"] - steps["compiled again"]
    for name, runs in found.items():
        compiling = statistics.median(run["compile_seconds"] for run in runs)
        pays = f", pays from {compiling / saved:,.0f} optimizer steps" if compiling and saved > 0 else ""
        print(f"{name:18} {1e6 * steps[name]:6.0f} us per optimizer step, {compiling:5.1f} s of compiling{pays}")


if __name__ == "__main__":
    main()
