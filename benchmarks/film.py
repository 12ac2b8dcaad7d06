"""The moving picture of the README: HalfCheetah before and after a short training, by the commands that users have.

    python benchmarks/film.py                       # train, play, write docs/pictures/halfcheetah.webp
    python benchmarks/film.py --runs runs/film      # keep the runs there, and go on with them

It needs the extras `mujoco` and `video`, and an OpenGL that works without a display.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "pictures" / "halfcheetah.webp"
BUDGETS = (4_096, 300_000)
"""Environment steps that the two agents are trained for; the first makes one update."""
SIZE = (300, 190)
FRAMES = 120
FRAMES_PER_SECOND = 20
LIMIT = 1_000_000
"""Bytes that the picture may have at most."""


def run(*command: str) -> str:
    """Run a command of `lightning-ppo` and return what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "lightning_ppo", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def play(folder: Path, env_steps: int) -> tuple[Path, dict]:
    """Train for so many steps, and return the film and the `summary.json` of an agent."""
    run_dir = folder / f"{env_steps}"
    settings = [f"total_env_steps={env_steps}", "evaluation.final_episodes=10"]
    run("train", "halfcheetah", *settings, f"run_dir={run_dir}", "resume=auto")
    film = run_dir / "film.mp4"
    run("evaluate", f"{run_dir / 'checkpoints' / 'last.ckpt'}", "--video", f"{film}", "--episodes", "1")
    return film, json.loads((run_dir / "summary.json").read_text())


def frames_of(film: Path) -> Iterator[Image.Image]:
    """Yield the first frames of a film, the middle of each at the size of the picture."""
    reader = imageio_ffmpeg.read_frames(str(film))
    width, height = next(reader)["size"]
    share = SIZE[1] / SIZE[0] * width / 2
    middle = 0.55 * height
    for frame, _ in zip(reader, range(FRAMES), strict=False):
        picture = Image.fromarray(np.frombuffer(frame, np.uint8).reshape(height, width, 3))
        yield picture.crop((0, int(middle - share), width, int(middle + share))).resize(SIZE)


def beside(films: list[tuple[Path, dict]]) -> list[Image.Image]:
    """Return frames with the agents side by side and what they are written above them."""
    pictures = []
    for frames in zip(*(frames_of(film) for film, _ in films), strict=True):
        picture = Image.new("RGB", (SIZE[0] * len(films), SIZE[1] + 24), "#161b22")
        for number, (frame, (_, summary)) in enumerate(zip(frames, films, strict=True)):
            picture.paste(frame, (number * SIZE[0], 24))
            label = f"after {summary['env_steps']:,} steps: return {summary['eval_return_mean']:,.0f}"
            ImageDraw.Draw(picture).text((number * SIZE[0] + 8, 4), label, fill="#e6edf3", font_size=14)
        pictures.append(picture)
    return pictures


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of the runs, a temporary one if it is left out")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        films = [play((runs or Path(temporary)).resolve(), env_steps) for env_steps in BUDGETS]
        first, *others = beside(films)
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
