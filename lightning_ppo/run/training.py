"""A training run, from settings to summary.json."""

import json
import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_ppo.run.arguments import as_config
from lightning_ppo.run.building import build
from lightning_ppo.run.run_directory import RUN_DIR_VARIABLE, choose_run_dir, claim
from lightning_ppo.run.trainer import build_trainer
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import marked
from lightning_ppo.settings.sections import Config
from lightning_ppo.support.distributed import print_once
from lightning_ppo.support.packages import package_versions
from lightning_ppo.support.program import columns, program


def train(config: Config | str | Path | Mapping[str, Any], callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train an agent, as the command `lightning-ppo train` does, and return the contents of summary.json.

    Everything is written to the run directory, `run_dir`: settings, metrics, checkpoints, and the summary.

    Example:
        >>> train("halfcheetah")
        >>> train({"env.id": "Acrobot-v1", "total_env_steps": 300_000, "policy": {"hidden_sizes": [64, 64]}})
        >>> train({"run_dir": "runs/mine", "resume": "last"}, callbacks=[MyCallback()])

    Args:
        config: The name of a config, such as `halfcheetah`; the path of a YAML file; a mapping of settings, nested or
            with dotted keys, which means what `key=value` means on the command line; or a `Config`.
        callbacks: Lightning callbacks besides those that the settings name.

    Raises:
        UserError: For every error that a user can correct.
        Interrupted: If a signal stopped the training; its state has been saved.
    """
    named = RUN_DIR_VARIABLE in os.environ
    try:
        return _train(as_config(config), callbacks)
    finally:
        if not named:  # the next training in this process gets a run directory of its own
            os.environ.pop(RUN_DIR_VARIABLE, None)


def _train(config: Config, callbacks: Sequence[Any]) -> dict[str, Any]:
    started = time.perf_counter()
    import torch

    from lightning_ppo.run.advice import advice, stepped_by
    from lightning_ppo.run.callbacks import Timing
    from lightning_ppo.run.launch import check_launch
    from lightning_ppo.run.told import info_table, told
    from lightning_ppo.speed.hardware import use_cores
    from lightning_ppo.support.checkpoint_files import read_checkpoint
    from lightning_ppo.support.distributed import gather_objects
    from lightning_ppo.support.files import replacing
    from lightning_ppo.support.git import commit
    from lightning_ppo.update.checks import check_fit
    from lightning_ppo.update.trainer_checks import check_trainer

    quiet()
    checkpoint = None if config.resume == "auto" else config.resume  # `auto` found none
    resumed = read_checkpoint(checkpoint) if checkpoint else None
    data, model = build(config)
    run_dir = choose_run_dir(config)
    timing = Timing()
    resume_step = 0 if config.resume else None
    trainer = build_trainer(
        config, run_dir, timing, model, resumed["ppo"]["env_steps"] if resumed else resume_step, callbacks, data.env
    )
    use_cores(model.policy, trainer.num_devices)
    check_launch(trainer)
    check_trainer(trainer)
    check_fit(model, data, trainer)
    size = config.env.num_envs * config.rollout.num_steps * trainer.world_size
    if resumed and resumed["ppo"]["env_steps"] + size > config.total_env_steps and (run_dir / "summary.json").is_file():
        print_once(f"{run_dir} has used up its {config.total_env_steps:,} steps; raise total_env_steps")
        return json.loads((run_dir / "summary.json").read_text())
    writes = trainer.is_global_zero and not trainer.fast_dev_run
    if writes:
        claim(run_dir, config)
        for logger in trainer.loggers if trainer.enable_autolog_hparams else []:
            logger.log_hyperparams(marked(config))
    print_once(_headline(config, model, data, trainer, run_dir))
    if config.total_env_steps % size:
        count = config.total_env_steps // size
        ends = f"the run ends after {count:,} iterations, at most {count * size:,} steps"
        print_once(f"total_env_steps: {config.total_env_steps:,} is no multiple of {size:,}; {ends}")

    stepped = stepped_by(data.env)
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.fast_dev_run:
        return {}
    fit_metrics = dict(trainer.callback_metrics)
    test = trainer.test(model, data, verbose=False)[0] if config.evaluation.final_episodes else {}
    latest = gather_objects(list(model.recent_returns))
    wall_seconds = time.perf_counter() - started
    returns = torch.tensor([value for own in latest for value in own], dtype=torch.float64)
    summary = {
        "env_id": config.env.id,
        "env": _protocol(config.env),
        "seed": config.seed,
        "world_size": trainer.world_size,
        "env_steps": model.env_steps,
        "iterations": model.iterations,
        "optimizer_steps": trainer.global_step,
        "wall_seconds": wall_seconds,
        "fit_seconds": timing.fit_seconds,
        "collect_seconds": timing.collect_seconds,
        "update_seconds": timing.update_seconds,
        "evaluate_seconds": timing.evaluate_seconds,
        "compile_seconds": model.compile_seconds,
        "env_steps_per_second": timing.env_steps_per_second,
        "wall_env_steps_per_second": (model.env_steps - (resumed["ppo"]["env_steps"] if resumed else 0)) / wall_seconds,
        "train_return_mean": float(returns.mean()) if len(returns) else None,
        "train_return_std": float(returns.std(correction=0)) if len(returns) else None,
        "eval_return_mean": test.get("test/return_mean"),
        "eval_return_std": test.get("test/return_std"),
        "eval_episodes": int(test.get("test/episodes", 0)),
        **told(fit_metrics, test),
        "versions": package_versions(),
        **({"git": state} if (state := commit()) else {}),
    }
    if writes:
        with replacing(run_dir / "summary.json") as file:
            file.write(json.dumps(summary, indent=2) + "\n")
        print(_table(summary, fit_metrics, run_dir) + info_table(summary))
        if line := advice(config, summary, stepped, trainer.strategy.root_device.type == "cpu"):
            print(f"\n{line}")
    return summary


def quiet() -> None:
    """Keep only those messages of Lightning that need action."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lightning_ppo").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # run directories that hold something are refused here unless they are resumed
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # rollouts come from the environment, so there is no sampler that could be distributed
    warnings.filterwarnings("ignore", message=".*it is recommended to use.*single device to ensure each sample.*")


def _headline(config: Config, model: Any, data: Any, trainer: Any, run_dir: Path) -> str:
    import torch

    from lightning_ppo.update.compiling import Choice, choose

    parameters = sum(p.numel() for p in model.parameters())
    batch = config.env.num_envs * config.rollout.num_steps * trainer.world_size
    count = torch.get_num_threads()
    why = " (OMP_NUM_THREADS)" if "OMP_NUM_THREADS" in os.environ else " (OMP_NUM_THREADS overrides)" * (count > 1)
    threads = f"{count} thread{'s' if count > 1 else ''}{why}"
    device = trainer.strategy.root_device.type
    chosen = "" if "precision" in config.trainer or trainer.precision == "32-true" else " (faster on this CPU)"
    idle = " (a GPU is idle: small networks are faster on the CPU; trainer.accelerator=gpu overrides)"
    choice = choose(model, data, trainer) if config.compile == "auto" else Choice(config.compile, "as set")
    update = f"update {'compiled' if choice.compiled else 'uncompiled'} ({choice.because})"
    return (
        f"{config.env.id}: {config.total_env_steps:,} steps, {trainer.world_size} x {config.env.num_envs} envs x "
        f"{config.rollout.num_steps} steps = {batch:,} per iteration, {parameters:,} parameters, seed {config.seed}\n"
        f"on {device}{idle if device == 'cpu' and torch.cuda.is_available() else ''}, "
        f"{threads}, {trainer.precision}{chosen}, {update}; writing to {run_dir}"
    )


def _protocol(env: EnvConfig) -> dict[str, Any]:
    """Return the settings that say which task the results are of."""
    from lightning_ppo.envs.atari import is_atari

    settings = marked(env)
    return settings if is_atari(env.id) else {name: value for name, value in settings.items() if name != "atari"}


def _table(summary: dict[str, Any], metrics: dict[str, Any], run_dir: Path) -> str:
    def spread(mean: float | None, std: float | None, what: str) -> str:
        return "-" if mean is None or std is None else f"{mean:,.1f} ± {std:,.1f} {what}"

    rows = [
        ("training return", spread(summary["train_return_mean"], summary["train_return_std"], "(last 100 episodes)")),
        (
            "evaluation return",
            spread(summary["eval_return_mean"], summary["eval_return_std"], f"({summary['eval_episodes']} episodes)"),
        ),
        ("environment steps", f"{summary['env_steps']:,} in {summary['iterations']:,} iterations"),
        (
            "speed",
            f"{summary['env_steps_per_second']:,.0f} steps/s of collecting and updating, "
            f"{summary['wall_env_steps_per_second']:,.0f} with everything counted",
        ),
        (
            "time",
            f"{summary['wall_seconds']:.1f} s; in all, collecting {summary['collect_seconds']:.1f}, "
            f"updating {summary['update_seconds']:.1f}, compiling {summary['compile_seconds']:.1f}, "
            f"evaluating {summary['evaluate_seconds']:.1f}",
        ),
        ("curves", f"tensorboard --logdir {run_dir}"),
    ]
    if (run_dir / "checkpoints" / "last.ckpt").exists():
        rows.append(("play it", f"{program()} evaluate {run_dir}/checkpoints/last.ckpt"))
    return f"\n{columns(rows)}"
