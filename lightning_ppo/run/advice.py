"""One line at the end of a run where its measured times say that a setting would clearly help."""

from collections.abc import Mapping
from typing import Any

from lightning_ppo.settings.sections import Config
from lightning_ppo.support.cores import usable_cores
from lightning_ppo.support.program import program

CLEARLY = 0.2
"""Share of a run's time that a setting would save at least."""
LEAST_SECONDS = 60.0
"""Shorter runs get no advice."""
SHARED = 0.8
"""Share of what p processes could save of collecting, 1 - 1/p, that they do save (two: 57 ms of 96, docs/speed.md)."""
COMPILED = 0.5
"""Share of an update's time that compiling saves (docs/speed.md)."""
EVALUATING = 0.1
"""Share of the time that evaluations take by default, about."""


def advice(config: Config, summary: Mapping[str, Any], stepped: str, on_cpu: bool) -> str:
    """Return the line, empty where nothing would clearly help.

    Args:
        config: The run's settings.
        summary: What summary.json says.
        stepped: See `stepped_by`.
        on_cpu: Whether the run trained on a CPU.
    """
    from lightning_ppo.update.compiling import WORTH_IT

    collecting, updating, evaluating = (summary[f"{name}_seconds"] for name in ("collect", "update", "evaluate"))
    whole = collecting + updating + evaluating + summary["compile_seconds"]
    if whole < LEAST_SECONDS:
        return ""
    found = [(0.0, "", 0.0, "")]
    if config.evaluation.every_n_epochs is not None:
        saved = evaluating - EVALUATING * whole
        found.append((saved, "evaluating", evaluating, "evaluation.every_n_epochs=null"))
    processes = min(usable_cores() // summary["world_size"], config.env.num_envs)
    alone = config.rollout.processes == 1 and not config.rollout.overlap
    if stepped == "sync" and on_cpu and alone and processes > 1:
        saved = SHARED * collecting * (1 - 1 / processes)
        found.append((saved, "collecting", collecting, f"rollout.processes={processes}"))
    if config.compile is False and not config.plain and summary["optimizer_steps"] >= WORTH_IT:
        found.append((COMPILED * updating, "updating", updating, "compile=auto"))
    saved, what, seconds, override = max(found)
    if saved < CLEARLY * whole:
        return ""
    return f"{what} took {seconds / whole:.0%} of the time: {override} may help; {program()} tune measures what does"


def stepped_by(env: Any) -> str:
    """Return the backend that steps the single copies of a vector environment, empty where it steps all at once."""
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

    kinds = {"async": AsyncVectorEnv, "sync": SyncVectorEnv}
    return next((name for name, kind in kinds.items() if isinstance(env.unwrapped, kind)), "")
