"""What environments told in their infos, at the end of a run: in summary.json, and as a table."""

from collections.abc import Mapping
from typing import Any

SOURCES = {"train": "rollout", "eval": "test"}
"""Names in the summary, and the metrics that they are the latest of."""

KINDS = ("per_step", "per_episode")


def told(training: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a summary says of success and of logged infos, which is nothing where environments told none.

    Args:
        training: The latest metrics of the training.
        test: Metrics of the final evaluation.
    """
    found: dict[str, Any] = {}
    metrics = {"train": training, "eval": test}
    for name, prefix in SOURCES.items():
        rate = metrics[name].get(f"{prefix}/success_rate")
        if rate is not None:
            found[f"{name}_success_rate"] = float(rate)
    info: dict[str, dict[str, float]] = {}
    for name, prefix in SOURCES.items():
        for key, value in metrics[name].items():
            entry, kind = _parts(key.removeprefix(f"{prefix}/info/")) if key.startswith(f"{prefix}/info/") else ("", "")
            if kind:
                info.setdefault(entry, {})[f"{name}_{kind}"] = float(value)
    return found | ({"info": info} if info else {})


def _parts(key: str) -> tuple[str, str]:
    """Return the name of an entry and the kind of its mean."""
    return next(((key.removesuffix(f"_{kind}"), kind) for kind in KINDS if key.endswith(f"_{kind}")), ("", ""))


def info_table(summary: Mapping[str, Any]) -> str:
    """Return what was told as a table, success first; empty where nothing was."""
    columns = [f"{name}_{kind}" for name in SOURCES for kind in KINDS]
    rates = {f"{name}_per_episode": summary.get(f"{name}_success_rate") for name in SOURCES}
    rows = {"success rate": rates} if any(rate is not None for rate in rates.values()) else {}
    rows |= summary.get("info", {})
    if not rows:
        return ""
    width = max(map(len, (*rows, "info")))
    titles = [column.replace("_", " ").replace("train", "training").replace("eval", "evaluation") for column in columns]
    lines = [f"{'info':<{width}}  " + "  ".join(f"{title:>22}" for title in titles)]
    for name, values in rows.items():
        cells = [values.get(column) for column in columns]
        shown = ["-" if value is None else f"{value:,.4g}" for value in cells]
        lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>22}" for cell in shown))
    return "\n\n" + "\n".join(lines)
