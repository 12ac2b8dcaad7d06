"""The moving picture of the README: HalfCheetah after one update and after a short training.

    python benchmarks/film.py                       # train, play, write docs/pictures/halfcheetah.webp
    python benchmarks/film.py --runs runs/film      # keep the runs there, and go on with them

The agents are trained by `lightning-ppo train` and played by `PPO.predict`; their rows are in
benchmarks/results/film.csv. It needs the extra `mujoco`, Pillow, and an OpenGL that works without a display.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gymnasium
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import learning
from lightning_ppo import PPO

TARGET = learning.ROOT / "docs" / "pictures" / "halfcheetah.webp"
BUDGETS = (4_096, 300_000)
"""Environment steps that the two agents are trained for; the first makes one update."""
SIZE = (300, 190)
FRAMES = 120
FRAMES_PER_SECOND = 20
LIMIT = 1_000_000
"""Bytes that the picture may have at most."""


def settings(env_steps: int) -> list[str]:
    """Return the arguments of the command that trains for so many steps."""
    budget = f"total_env_steps={env_steps}"
    return ["train", "halfcheetah", budget, "evaluation.episodes=0", "evaluation.final_episodes=10"]


def train(folder: Path, env_steps: int) -> Path:
    """Train for so many steps, or go on with it, and return the run directory."""
    run_dir = folder / f"{env_steps}"
    command = [sys.executable, "-m", "lightning_ppo", *settings(env_steps), f"run_dir={run_dir}", "resume=auto"]
    if not (run_dir / "summary.json").exists():
        subprocess.run(command, cwd=learning.ROOT, check=True)
    return run_dir


def keep(runs: list[Path]) -> None:
    """Write the rows of the agents."""
    (learning.RESULTS / "film.csv").unlink(missing_ok=True)
    for run_dir in runs:
        summary = json.loads((run_dir / "summary.json").read_text())
        command = " ".join(["lightning-ppo", *settings(int(run_dir.name))])
        learning.append_row("film", summary | learning.provenance("film", command, summary["versions"]))


def frames_of(run_dir: Path) -> Iterator[Image.Image]:
    """Yield what an agent does at the start of an episode."""
    width, height = SIZE
    env = gymnasium.make("HalfCheetah-v5", render_mode="rgb_array", width=width, height=height, camera_name="track")
    model = PPO.load_from_checkpoint(run_dir / "checkpoints" / "last.ckpt", map_location="cpu")
    observation, _ = env.reset(seed=1)
    for _ in range(FRAMES):
        yield Image.fromarray(env.render())
        action, _ = model.predict(observation)
        observation, *_ = env.step(action)
    env.close()


def beside(runs: list[Path]) -> list[Image.Image]:
    """Return frames with the agents side by side, and above each what it is."""
    summaries = [json.loads((run_dir / "summary.json").read_text()) for run_dir in runs]
    pictures = []
    for frames in zip(*map(frames_of, runs), strict=True):
        picture = Image.new("RGB", (SIZE[0] * len(runs), SIZE[1] + 24), "#161b22")
        for number, (frame, summary) in enumerate(zip(frames, summaries, strict=True)):
            picture.paste(frame, (number * SIZE[0], 24))
            label = f"after {summary['env_steps']:,} steps: return {round(summary['eval_return_mean']):,}"
            ImageDraw.Draw(picture).text((number * SIZE[0] + 8, 4), label, fill="#e6edf3", font_size=14)
        pictures.append(picture)
    return pictures


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of the runs, a temporary one if it is left out")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        folder = (runs or Path(temporary)).resolve()
        trained = [train(folder, env_steps) for env_steps in BUDGETS]
        first, *others = beside(trained)
        keep(trained)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    first.save(
        TARGET, save_all=True, append_images=others, duration=1000 // FRAMES_PER_SECOND, loop=0, quality=45, method=6
    )
    size = TARGET.stat().st_size
    print(f"{TARGET}: {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT:,} bytes: fewer frames, or a lower quality")


if __name__ == "__main__":
    main()
