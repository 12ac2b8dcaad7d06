"""The page itself: results, curves, settings and versions of runs, with nothing loaded from anywhere."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from statistics import fmean, stdev

import numpy as np
from omegaconf import OmegaConf

from lightning_ppo.report.charts import Series, chart, short
from lightning_ppo.report.runs import Group, Run, changed_settings, group_runs
from lightning_ppo.support.statistics import over_seeds

METRICS = {
    "rollout/return_mean": ("Training return", "mean of the last 100 training episodes"),
    "eval/return_mean": ("Evaluation return", "mean of the episodes played after an epoch"),
    "rollout/length_mean": ("Episode length", "steps, mean of the last 100 training episodes"),
    "time/env_steps_per_second": ("Speed", "environment steps per second of collecting and updating"),
    "loss/policy": ("Policy loss", ""),
    "loss/value": ("Value loss", ""),
    "loss/entropy": ("Entropy", "of the action distribution, in nats"),
    "update/kl": ("KL divergence", "exact, of the policy after an iteration from the one before, in nats"),
    "update/clip_fraction": ("Clip fraction", "share of transitions whose ratio left the clip range"),
    "update/explained_variance": ("Explained variance", "of the returns by the critic; 1 is perfect"),
    "update/learning_rate": ("Learning rate", ""),
    "update/grad_norm": ("Gradient norm", "before clipping"),
}
"""Titles and meanings of what every run logs, in the order of the page; other columns follow under their own names."""

COLOURS = 8
"""Colours that the style sheet has; further groups repeat them with dashes."""


def make_page(runs: Sequence[Run], now: datetime | None = None) -> str:
    """Return an HTML page about runs, grouped by environment and settings.

    Args:
        runs: At least one.
        now: Time that the page names; None takes the clock.
    """
    environments = list(dict.fromkeys(run.env_id for run in runs))
    title = f"{', '.join(environments)} · {len(runs)} run{'s' if len(runs) > 1 else ''}"
    moment = f"{now or datetime.now():%Y-%m-%d %H:%M}"
    sections = [_environment(name, group_runs([run for run in runs if run.env_id == name])) for name in environments]
    assets = files("lightning_ppo.report")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{(assets / 'page.css').read_text()}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p class=muted>lightning_ppo report of {moment}. Curves are drawn against "
        "environment steps; a line is the mean over seeds, its band reaches from the least to the greatest seed.</p>"
        f"{''.join(sections)}{_versions(runs)}"
        f"</main><script>{(assets / 'page.js').read_text()}</script></body></html>\n"
    )


def _environment(name: str, groups: Sequence[Group]) -> str:
    return (
        f"<section><h2>{escape(name)}</h2>{_results(groups)}{_legend(groups)}"
        f'<div class="charts">{"".join(_charts(groups))}</div>{_constants(groups)}'
        f"<h3>Settings</h3>{''.join(_settings(group, slot, len(groups) > 1) for slot, group in enumerate(groups))}"
        "</section>"
    )


# ---------------------------------------------------------------- results


def _results(groups: Sequence[Group]) -> str:
    head = ("", "training return", "evaluation return", "steps", "steps/s", "training time")
    rows = []
    for slot, group in enumerate(groups):
        if len(group.runs) > 1 or len(groups) > 1:
            count = f"{len(group.runs)} seed{'s' if len(group.runs) > 1 else ''}"
            name = f"{_swatch(slot)} {escape(group.label)} <span class=muted>{count}</span>"
            rows.append(_row("group", name, _over_seeds(group), head))
        for run in group.runs:
            name = f"seed {run.seed} <span class=muted>{escape(str(run.path))}</span>"
            rows.append(_row("run", name, _of_run(run), head))
    titles = "".join(f"<th>{title}</th>" for title in head)
    table = f"<table class=results><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return table + "".join(map(_distribution, groups))


def _distribution(group: Group) -> str:
    """Return what three or more seeds say together, one paragraph for each kind of return."""
    lines = []
    for name, of_run in (("training return", _training_return), ("evaluation return", _evaluation_return)):
        known = [value for run in group.runs if (value := of_run(run)[0]) is not None]
        if len(known) > 2:
            lines.append(f"<p class=muted>{escape(group.label)}, {name}: {over_seeds(known)}</p>")
    return "".join(lines)


def _row(kind: str, name: str, cells: Sequence[str], head: Sequence[str]) -> str:
    body = "".join(
        f'<td data-label="{title}"><span>{cell}</span></td>' for title, cell in zip(head[1:], cells, strict=True)
    )
    return f"<tr class={kind}><th>{name}</th>{body}</tr>"


def _of_run(run: Run) -> list[str]:
    summary = run.summary or {}
    steps = summary.get("env_steps") or max((float(s[-1]) for s, _ in run.curves.values()), default=0.0)
    return [
        _spread(*_training_return(run)),
        _spread(*_evaluation_return(run)),
        f"{steps:,.0f}" + ("" if run.summary else " (not ended)"),
        _number(summary.get("env_steps_per_second") or run.last("time/env_steps_per_second")),
        _duration(summary["fit_seconds"], summary) if "fit_seconds" in summary else "–",
    ]


def _over_seeds(group: Group) -> list[str]:
    def spread(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        if not known:
            return "–"
        return _spread(fmean(known), stdev(known) if len(known) > 1 else None)

    speeds = [
        (run.summary or {}).get("env_steps_per_second") or run.last("time/env_steps_per_second") for run in group.runs
    ]
    return [
        spread([_training_return(run)[0] for run in group.runs]),
        spread([_evaluation_return(run)[0] for run in group.runs]),
        "",
        spread(speeds),
        "",
    ]


def _training_return(run: Run) -> tuple[float | None, float | None]:
    if run.summary and run.summary.get("train_return_mean") is not None:
        return run.summary["train_return_mean"], run.summary["train_return_std"]
    return run.last("rollout/return_mean"), None


def _evaluation_return(run: Run) -> tuple[float | None, float | None]:
    if run.summary and run.summary.get("eval_return_mean") is not None:
        return run.summary["eval_return_mean"], run.summary["eval_return_std"]
    return run.last("eval/return_mean"), None


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _spread(mean: float | None, deviation: float | None) -> str:
    return _number(mean) + (f" ± {_number(deviation)}" if mean is not None and deviation is not None else "")


def _duration(seconds: float, summary: Mapping[str, float]) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    share = summary["collect_seconds"] / max(summary["collect_seconds"] + summary["update_seconds"], 1e-9)
    return f"{text} <span class=muted>({share:.0%} collecting)</span>"


# ---------------------------------------------------------------- curves


def _colour(slot: int) -> str:
    return f"s{slot % COLOURS}" + (" dashed" if slot >= COLOURS else "")


def _swatch(slot: int) -> str:
    return f'<span class="swatch {_colour(slot)}"></span>'


def _legend(groups: Sequence[Group]) -> str:
    if len(groups) < 2:
        return ""
    entries = [f"<li>{_swatch(slot)} {escape(group.label)}</li>" for slot, group in enumerate(groups)]
    return f"<ul class=legend>{''.join(entries)}</ul>"


def _names(groups: Sequence[Group]) -> list[str]:
    logged = {name for group in groups for run in group.runs for name in run.curves}
    # the final evaluation is one point, which is in the table
    return [name for name in METRICS if name in logged] + sorted(
        name for name in logged - set(METRICS) if not name.startswith("test/")
    )


def _constant(groups: Sequence[Group], name: str) -> set[float] | None:
    """Return the values of a column that no run changes, or None if one does."""
    columns = [run.curves[name][1] for group in groups for run in group.runs if name in run.curves]
    if any(np.ptp(column) > 0.0 for column in columns):
        return None
    return {float(column[0]) for column in columns}


def _charts(groups: Sequence[Group]) -> list[str]:
    charts = []
    for name in _names(groups):
        if name not in METRICS and _constant(groups, name):
            continue
        bands = [(slot, group, group.band(name)) for slot, group in enumerate(groups)]
        series = [Series(group.label, _colour(slot), *band) for slot, group, band in bands if band is not None]
        title, note = METRICS.get(name, (name, ""))
        charts.append(chart(title, note, series))
    return charts


def _constants(groups: Sequence[Group]) -> str:
    found = {name: _constant(groups, name) for name in _names(groups) if name not in METRICS}
    shown = [f"{escape(name)} {', '.join(map(short, sorted(values)))}" for name, values in found.items() if values]
    return f"<p class=muted>Constant throughout a run: {'; '.join(shown)}.</p>" if shown else ""


# ---------------------------------------------------------------- settings and versions


def _settings(group: Group, slot: int, several: bool) -> str:
    run = group.runs[0]
    changed = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in changed_settings(run).items()
    )
    yaml = OmegaConf.to_yaml(OmegaConf.create(run.settings))
    name = f"<p>{_swatch(slot)} {escape(group.label)}</p>" if several else ""
    seeds = ", ".join(str(run.seed) for run in group.runs)
    return (
        f"{name}<table class=settings>{changed}<tr><th>seed</th><td>{seeds}</td></tr></table>"
        f"<details><summary>All settings</summary><pre>{escape(yaml)}</pre></details>"
    )


def _versions(runs: Sequence[Run]) -> str:
    known = [run.summary["versions"] for run in runs if run.summary and "versions" in run.summary]
    if not known:
        return ""
    packages = dict.fromkeys(name for versions in known for name in versions)
    found = {name: sorted({str(versions.get(name, "absent")) for versions in known}) for name in packages}
    rows = "".join(f"<tr><th>{escape(n)}</th><td>{escape(', '.join(f))}</td></tr>" for n, f in found.items())
    return f"<section><h2>Versions</h2><table class=settings>{rows}</table></section>"
