"""Train for a long time and watch memory and speed: `python benchmarks/soak.py --minutes 60`.

Samples the resident memory of the training process and its environment steps every few seconds, fits a line to each
after a warm-up, and prints the slopes with their standard errors. Exits with 1 if memory grows by more than three
standard errors and more than a megabyte an hour, or if the speed of the second half is off by more than a tenth.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 2**20


def slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of the least-squares line and its standard error."""
    x = x - x.mean()
    value = float(x @ (y - y.mean()) / (x @ x))
    residuals = y - y.mean() - value * x
    return value, float(np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x)))


def env_steps(metrics: Path) -> int:
    """Return the step of the last complete row of metrics.csv."""
    if not metrics.exists():
        return 0
    with open(metrics, "rb") as file:
        file.seek(max(metrics.stat().st_size - 4096, 0))
        lines = file.read().decode().split("\n")[:-1]
    return int(lines[-1].split(",")[0]) if lines and lines[-1][:1].isdigit() else 0


def main() -> int:
    """Train, sample, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--out", help="CSV file for the samples")
    parser.add_argument("settings", nargs="*", default=["env.id=CartPole-v1"], help="key=value settings of the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        fixed = [f"run_dir={run_dir}", "total_env_steps=1000000000000", "trainer.enable_progress_bar=false"]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *options.settings, *fixed],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        samples = []
        watched, started = psutil.Process(process.pid), time.monotonic()
        while time.monotonic() - started < 60.0 * options.minutes and process.poll() is None:
            time.sleep(options.every)
            seconds = time.monotonic() - started
            samples.append((seconds, watched.memory_info().rss / MEGABYTE, env_steps(run_dir / "metrics.csv")))
        process.terminate()
        if process.wait() != 143:
            print(f"the training ended with {process.returncode}")
            return 1
    if options.out:
        with open(options.out, "w", newline="") as file:
            csv.writer(file).writerows([("seconds", "resident_megabytes", "env_steps"), *samples])
    warm = np.array([sample for sample in samples if sample[0] > 0.2 * samples[-1][0] and sample[2] > 0])
    seconds, memory, steps = warm.T
    growth, error = slope(seconds / 3600.0, memory)
    half = len(warm) // 2
    speeds = [(part[-1, 2] - part[0, 2]) / (part[-1, 0] - part[0, 0]) for part in (warm[: half + 1], warm[half:])]
    print(f"{seconds[-1] / 60:.0f} minutes, {steps[-1]:,.0f} steps, {len(warm)} samples after warm-up")
    print(f"resident memory {memory.mean():.1f} MB, slope {growth:+.2f} ± {error:.2f} MB an hour")
    print(f"speed {speeds[0]:,.0f} steps/s in the first half, {speeds[1]:,.0f} in the second (evaluation included)")
    grows = growth > max(3.0 * error, 1.0)
    slows = abs(speeds[1] / speeds[0] - 1.0) > 0.1
    return int(grows or slows)


if __name__ == "__main__":
    sys.exit(main())
