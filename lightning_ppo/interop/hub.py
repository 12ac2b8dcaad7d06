"""Share a trained agent: a repository with its checkpoint, settings, results, a video and a model card."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import ConfigError, UserError, one_line
from lightning_ppo.support.hub import AGENT, fetch, is_folder, upload
from lightning_ppo.support.program import program

FILES = {"config.yaml": "every setting", "summary.json": "the results"}
VIDEO = "replay.mp4"
CARD = "README.md"


def push(run_dir: Path, repository: str, private: bool = False, video: bool = True) -> list[str]:
    """Put the agent of a finished run into a repository of the Hub, or into a folder.

    Args:
        run_dir: The run directory.
        repository: `user/name`, or the path of a folder.
        private: Whether a new repository is private.
        video: Whether to film an episode, which needs an environment that renders.

    Returns:
        What to tell: where it is, and what could not be filmed.

    Raises:
        UserError: If the run has not finished, or the repository cannot be written to.
    """
    checkpoints = [run_dir / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    checkpoint = next((path for path in checkpoints if path.is_file()), None)
    missing = [name for name in FILES if not (run_dir / name).is_file()]
    if checkpoint is None or missing:
        what = ", ".join(missing) or "checkpoint"
        raise ConfigError(f"{run_dir}: there is no {what}; push the directory of a run that has finished")
    notes = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copy(checkpoint, folder / AGENT)
        for name in FILES:
            shutil.copy(run_dir / name, folder / name)
        if video and (problem := _film(folder)):
            notes.append(f"no video: {problem}")
        card = model_card(json.loads((run_dir / "summary.json").read_text()), repository, folder)
        (folder / CARD).write_text(card, encoding="utf-8")
        if is_folder(repository):
            address = str(Path(repository).expanduser())
            shutil.copytree(folder, address, dirs_exist_ok=True)
        else:
            address = upload(repository, folder, private)
    return [f"pushed the agent of {checkpoint.name} to {address}", *notes]


def _film(folder: Path) -> str:
    """Film an episode of the agent in a folder; return why that is not possible, if it is not."""
    from lightning_ppo.evaluation.checkpoint import evaluate

    try:
        evaluate(str(folder / AGENT), video=str(folder / VIDEO))
    except UserError as error:
        (folder / VIDEO).unlink(missing_ok=True)
        return one_line(error, 200)
    return ""


def pull(repository: str, target: Path, revision: str | None = None) -> list[Path]:
    """Copy agent, settings and results of a repository into a folder, and return what was written.

    Raises:
        UserError: If there is no such repository, or the folder is in use.
    """
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"--output: {target} is not empty and nothing in it is overwritten; name another")
    found = [fetch(repository, name, revision) for name in (AGENT, *FILES)]
    target.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(path, target / path.name)) for path in found]


def model_card(summary: dict[str, Any], repository: str, folder: Path) -> str:
    """Return the model card of an agent: metadata that the Hub reads, results, and how to use it."""
    settings = load([folder / "config.yaml"])
    task, mean, std = summary["env_id"], summary.get("eval_return_mean"), summary.get("eval_return_std")
    lines = ["---", "library_name: lightning-ppo", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in ("reinforcement-learning", "deep-reinforcement-learning", "ppo", task)]
    if mean is not None:
        result = {
            "task": {"type": "reinforcement-learning"},
            "dataset": {"name": task, "type": task},
            "metrics": [{"type": "mean_reward", "name": "mean return", "value": f"{mean:.2f} +/- {std:.2f}"}],
        }
        lines.append(f"model-index: {json.dumps([{'name': 'PPO', 'results': [result]}])}")
    lines += ["---", "", f"# PPO on {task}", "", "An agent that `lightning_ppo` has trained.", "", "| | |", "|---|---|"]
    if mean is not None:
        lines.append(f"| return of {summary['eval_episodes']} episodes | {mean:,.2f} ± {std:,.2f} |")
    lines += [
        f"| environment steps | {summary['env_steps']:,} |",
        f"| seed | {summary['seed']} |",
        f"| objective | {settings.objective if isinstance(settings.objective, str) else 'of its own'} |",
        *(f"| {package} | {number} |" for package, number in summary.get("versions", {}).items()),
        *([f"| git commit | {summary['git']['commit']} |"] if "git" in summary else []),
        "",
        "```python",
        "from lightning_ppo import PPO",
        "",
        f'model = PPO.from_hub("{repository}")',
        "actions, state = model.predict(observations)",
        "```",
        "",
        "```bash",
        f"{program()} pull {repository} --output agent",
        f"{program()} evaluate agent/{AGENT}",
        "```",
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in {AGENT: "the agent", **FILES}.items()),
        *([f"- `{VIDEO}`: an episode"] if (folder / VIDEO).is_file() else []),
    ]
    return "\n".join(lines) + "\n"
