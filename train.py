"""Train an agent: `python train.py [CONFIG.yaml ...] [key=value ...]`; without arguments, configs/cartpole.yaml."""

import json
import logging
import os
import re
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning_ppo.class_path import instantiate
from lightning_ppo.config import Config, EnvConfig, flat, given_keys, load, load_over, peek, to_container, to_yaml
from lightning_ppo.errors import ConfigError, UserError, report
from lightning_ppo.trust import check_names

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "cartpole.yaml"
FIXED = ("env.id", "objective", "normalize.observations", "normalize.rewards")
"""Settings that a resumed run cannot change, besides those of the networks."""

RUN_DIR_VARIABLE = "LIGHTNING_PPO_RUN_DIR"
PACKAGES = ("lightning-ppo", "torch", "pytorch-lightning", "gymnasium", "numpy", "torchmetrics", "omegaconf", "mujoco")

HELP = """\
usage: python train.py [CONFIG.yaml ...] [key=value ...]

Train a PPO agent. Without a config file, trains configs/cartpole.yaml. Later files and overrides win.

examples:
  python train.py                                             CartPole-v1, solved in under a minute
  python train.py configs/pendulum.yaml seed=3                another config, another seed
  python train.py env.id=Acrobot-v1 total_env_steps=300000    any Gymnasium environment
  python train.py env.id=my_package.my_env:MyEnv              an environment class of yours
  python train.py run_dir=runs/mine trainer.max_time=00:01:00:00
  python train.py run_dir=runs/mine resume=last               go on where it stopped
  python train.py trainer.devices=2 trainer.strategy=ddp      two processes
  torchrun --nproc_per_node=4 train.py trainer.devices=4 run_dir=runs/mine; docs/scaling.md has more

options:
  --print-config    print the resolved settings as YAML and exit
  --trust NAME      a package, or whole name, that a checkpoint to resume may name though it comes from elsewhere
  --help            print this and exit

settings met most often (all of them, with their defaults: python train.py --print-config):
{settings}

configs in {folder}:
  {configs}

afterwards:
  python -m lightning_ppo evaluate RUN_DIR/checkpoints/best.ckpt    play the agent; --video out.mp4 shows it
  python -m lightning_ppo --help                                    everything else
"""
SHOWN = (
    *("seed", "total_env_steps", "run_dir", "env.id", "env.num_envs", "rollout.num_steps", "rollout.gamma"),
    *("update.minibatch_size", "optimizer.learning_rate", "policy.hidden_sizes", "compile"),
)
"""Settings that the help explains."""


def help_text() -> str:
    """Return what --help prints; the settings explain themselves."""
    from lightning_ppo.config_reference import settings

    by_key = {setting.key: setting for setting in settings()}
    width = max(map(len, SHOWN))
    folder = DEFAULT_CONFIG.parent
    configs = " ".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml")))
    return HELP.format(
        settings="\n".join(f"  {key:<{width}}  {by_key[key].meaning}" for key in SHOWN),
        folder=folder,
        configs="\n  ".join(textwrap.wrap(configs, 100)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a mistake in the settings, 1 for a failed run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("--help", "-h") for argument in arguments):
        print(help_text(), end="")
        return 0
    debug = "debug=true" in [argument.lower() for argument in arguments]
    try:
        config = read_arguments([a for a in arguments if a != "--print-config"])
        debug = config.debug
        if "--print-config" in arguments:
            print(to_yaml(config), end="")
            return 0
        train(config)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from lightning_ppo.callbacks import Interrupted

        if isinstance(error, Interrupted):
            print("stopped; go on with: python train.py run_dir=RUN_DIR resume=last", file=sys.stderr)
            return error.exit_code
        return report(error, debug, "debug=true")


def read_arguments(arguments: Sequence[str]) -> Config:
    """Return the settings that config files and `key=value` overrides describe; a resumed run brings its own.

    Raises:
        ConfigError: If an argument or setting is wrong.
    """
    trust, arguments = _take_trust(arguments)
    files = [a for a in arguments if "=" not in a]
    overrides = [a for a in arguments if "=" in a]
    for name in files:
        if name.startswith("-"):
            raise ConfigError(f"{name}: unknown option; the options are --help, --print-config and --trust")
        if not name.endswith((".yaml", ".yml")):
            raise ConfigError(f"{name}: expected a .yaml file or key=value")
    resume = peek(files, overrides, "resume")
    if resume is None:
        if trust:
            raise ConfigError("--trust: what you name yourself needs none; it is for a checkpoint given as resume=PATH")
        return load(files or [DEFAULT_CONFIG], overrides)
    found = _find_checkpoint(str(resume), peek(files, overrides, "run_dir"))
    if found is None:
        return load(files or [DEFAULT_CONFIG], overrides)
    run_dir, checkpoint, content = found
    saved = content.get("config")
    if saved is None:
        raise ConfigError(f"resume: {checkpoint} was not written by train.py and names no settings")
    check_names(content, checkpoint, trust, given_keys(files, overrides))
    config = load_over(saved, files, overrides)
    config = replace(config, run_dir=str(run_dir), resume=str(checkpoint))
    _check_resumable(load_over(saved), config)
    return config


def _take_trust(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values of `--trust NAME` and `--trust=NAME`, and the other arguments."""
    trust, others, left = [], [], iter(arguments)
    for argument in left:
        option, separator, value = argument.partition("=")
        if option != "--trust":
            others.append(argument)
            continue
        name = value if separator else next(left, "")
        if not name:
            raise ConfigError("--trust: expected a name after it")
        trust.append(name)
    return trust, others


def _find_checkpoint(resume: str, run_dir: Any) -> tuple[Path, Path, dict[str, Any]] | None:
    """Return the run directory, the checkpoint to resume and its contents, or None where `auto` finds none.

    Only a run's own directory is gone on with.
    """
    from lightning_ppo.checkpoint import read_checkpoint, read_newest, versions

    checkpoint = Path(resume)
    if resume in ("last", "auto"):
        if run_dir is None:
            raise ConfigError(f"resume: `{resume}` needs run_dir=PATH, the directory of the run to go on with")
        checkpoint = Path(run_dir) / "checkpoints" / "last.ckpt"
        if resume == "auto" and not versions(checkpoint):
            return None
    if not versions(checkpoint):
        raise ConfigError(f"resume: there is no checkpoint {checkpoint}")
    if resume in ("last", "auto"):
        checkpoint, content, problems = read_newest(checkpoint)
        if problems:
            _print(f"resume: {problems}; going on with the one before it, {checkpoint}")
    else:
        content = read_checkpoint(checkpoint)
    owner = checkpoint.resolve().parent.parent
    owned = checkpoint.resolve().parent.name == "checkpoints" and (owner / "config.yaml").is_file()
    if run_dir is None and not owned:
        raise ConfigError(f"resume: {checkpoint} lies in no run directory; name one with run_dir=PATH")
    target = owner if run_dir is None else Path(run_dir)
    if target.exists() and any(target.iterdir()) and not (owned and target.resolve() == owner):
        raise ConfigError(f"run_dir: {target} is not empty and {checkpoint} is not its own; name another")
    return target, checkpoint, content


def _check_resumable(saved: Config, config: Config) -> None:
    """Refuse to go on with another task or network, and print which settings changed."""
    old, new = (flat(to_container(c)) for c in (saved, config))
    for key in sorted(set(old) | set(new)):
        if old.get(key) == new.get(key) or key in ("resume", "run_dir"):
            continue
        if key in FIXED or key.startswith("policy."):
            raise ConfigError(f"{key}: the run to resume has {old.get(key)!r}, not {new.get(key)!r}; start a new run")
        _print(f"resume: {key} changes from {old.get(key)} to {new.get(key)}")


def _print(message: str) -> None:
    """Print on rank 0."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    rank_zero_only(print)(message)


def train(config: Config, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train as `config` says and return the contents of summary.json.

    Args:
        config: The settings.
        callbacks: Lightning callbacks besides those that the settings name.

    Raises:
        UserError: For everything that a person can mend.
        Interrupted: If a signal stopped the training; its state has been saved.
    """
    named = RUN_DIR_VARIABLE in os.environ
    try:
        return _train(config, callbacks)
    finally:
        if not named:  # the next training in this process gets a run directory of its own
            os.environ.pop(RUN_DIR_VARIABLE, None)


def _train(config: Config, callbacks: Sequence[Any]) -> dict[str, Any]:
    started = time.perf_counter()
    import pytorch_lightning as pl
    import torch

    from lightning_ppo.callbacks import Timing
    from lightning_ppo.checkpoint import read_checkpoint
    from lightning_ppo.checks import check_fit, check_launch
    from lightning_ppo.datamodule import RolloutDataModule
    from lightning_ppo.distributed import gather_objects
    from lightning_ppo.files import replacing
    from lightning_ppo.hardware import keep_freed_memory, limit_threads, use_cores
    from lightning_ppo.module import PPO
    from lightning_ppo.trainer_checks import check_trainer

    _quiet()
    limit_threads()
    keep_freed_memory()
    pl.seed_everything(config.seed, verbose=False)
    checkpoint = None if config.resume == "auto" else config.resume  # `auto` found none
    resumed = read_checkpoint(checkpoint) if checkpoint else None
    data = RolloutDataModule(
        config.env,
        rollouts_per_epoch=config.rollouts_per_epoch,
        evaluation=config.evaluation,
        seed=config.seed,
        **to_container(config.rollout),
    )
    model = PPO(
        data.observation_space,
        data.action_space,
        objective=config.objective,
        update=config.update,
        optimizer=config.optimizer,
        policy=config.policy,
        normalize=config.normalize,
        total_env_steps=config.total_env_steps,
        compile=config.compile,
        loss_terms=config.loss_terms,
    )
    run_dir = _run_dir(config)
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
        _print(f"{run_dir} has used up its {config.total_env_steps:,} steps; raise total_env_steps")
        return json.loads((run_dir / "summary.json").read_text())
    writes = trainer.is_global_zero and not trainer.fast_dev_run
    if writes:
        _claim(run_dir, config)
        for logger in trainer.loggers if trainer.enable_autolog_hparams else []:
            logger.log_hyperparams(to_container(config))
    _print(_headline(config, model, trainer, run_dir))

    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.fast_dev_run:
        return {}
    fit_metrics = dict(trainer.callback_metrics)
    test = trainer.test(model, data, verbose=False)[0] if config.evaluation.final_episodes else {}
    latest = gather_objects(list(model.recent_returns))
    returns = torch.tensor([value for own in latest for value in own], dtype=torch.float64)
    summary = {
        "env_id": config.env.id,
        "env": _protocol(config.env),
        "seed": config.seed,
        "world_size": trainer.world_size,
        "env_steps": model.env_steps,
        "iterations": model.iterations,
        "optimizer_steps": trainer.global_step,
        "wall_seconds": time.perf_counter() - started,
        "fit_seconds": timing.fit_seconds,
        "collect_seconds": timing.collect_seconds,
        "update_seconds": timing.update_seconds,
        "compile_seconds": model.compile_seconds,
        "env_steps_per_second": timing.env_steps_per_second,
        "train_return_mean": float(returns.mean()) if len(returns) else None,
        "train_return_std": float(returns.std(correction=0)) if len(returns) else None,
        "eval_return_mean": test.get("test/return_mean"),
        "eval_return_std": test.get("test/return_std"),
        "eval_episodes": int(test.get("test/episodes", 0)),
        "versions": versions(),
    }
    if writes:
        with replacing(run_dir / "summary.json") as file:
            file.write(json.dumps(summary, indent=2) + "\n")
        print(_table(summary, fit_metrics, run_dir))
    return summary


def _quiet() -> None:
    """Leave to Lightning only what a person must act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lightning_ppo").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # run directories that hold something are refused here unless they are resumed
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # rollouts come from the environment, so there is no sampler that could be distributed
    warnings.filterwarnings("ignore", message=".*it is recommended to use.*single device to ensure each sample.*")


def _run_dir(config: Config) -> Path:
    """Return the run directory, the same in every process of a launch."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    if RUN_DIR_VARIABLE not in os.environ:
        name = re.sub(r"[^\w./-]+", "_", config.env.id)
        os.environ[RUN_DIR_VARIABLE] = str(Path("runs") / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
        path = Path(os.environ[RUN_DIR_VARIABLE])
        for count in range(2, 100):
            if not path.exists():
                break
            path = path.with_name(f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{count}")
        os.environ[RUN_DIR_VARIABLE] = str(path)
    return Path(os.environ[RUN_DIR_VARIABLE])


def _claim(run_dir: Path, config: Config) -> None:
    """Create the run directory and write the settings there; refuse one that holds something else."""
    from lightning_ppo.checkpoint import set_damaged_aside
    from lightning_ppo.files import replacing

    used = run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir()))
    begun = config.resume == "auto" and (run_dir / "config.yaml").is_file()  # and stopped before its first checkpoint
    if used and not begun and config.resume in (None, "auto"):
        raise ConfigError(
            f"run_dir: {run_dir} is not empty and nothing in it is overwritten; name another, or add resume=last"
        )
    try:
        with replacing(run_dir / "config.yaml") as file:
            file.write(to_yaml(replace(config, resume=None)))
        set_damaged_aside(run_dir / "checkpoints" / "last.ckpt")
    except OSError as error:
        raise ConfigError(f"run_dir: cannot write to {run_dir}: {error.strerror}") from None


def build_trainer(
    config: Config,
    run_dir: Path,
    timing: Any,
    model: Any,
    resume_step: int | None,
    extra_callbacks: Sequence[Any] = (),
    env: Any = None,
) -> Any:
    """Return the Trainer with callbacks and loggers; `trainer.*` settings win over the defaults here.

    Without `trainer.accelerator`, or with `auto`, a GPU is used where it pays.

    Raises:
        ConfigError: If a Trainer setting is unknown, or a class path cannot be built.
    """
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Callback, ProgressBar

    from lightning_ppo.accelerator import choose_accelerator
    from lightning_ppo.callbacks import (
        EnvStepsProgressBar,
        GracefulStop,
        LastCheckpoint,
        RecordConfig,
        RelocatableCheckpoint,
    )
    from lightning_ppo.checkpoint import AtomicCheckpointIO
    from lightning_ppo.checks import check_trainer_settings, cluster_environment
    from lightning_ppo.hardware import fastest_precision
    from lightning_ppo.loggers import MetricsCSV, TensorBoardEvents, make_loggers

    given = dict(config.trainer)
    check_trainer_settings(given)
    if given.get("accelerator") == "auto":
        del given["accelerator"]
    writes = not given.get("fast_dev_run")
    callbacks: list[Any] = [timing, RecordConfig(to_container(replace(config, resume=None, run_dir=None)))]
    saves = writes and given.get("enable_checkpointing", True)
    folder = run_dir / "checkpoints"
    if saves:
        callbacks.append(LastCheckpoint(folder / "last.ckpt", config.checkpoint.every_env_steps))
        if config.checkpoint.save_best and config.evaluation.episodes and given.get("limit_val_batches", 1):
            best: dict[str, Any] = {"monitor": "eval/return_mean", "mode": "max", "save_on_train_epoch_end": False}
            callbacks.append(RelocatableCheckpoint(folder, "best", enable_version_counter=False, **best))
    own = [*(instantiate(entry, "callbacks", Callback) for entry in config.callbacks), *extra_callbacks]
    if given.get("enable_progress_bar", True) and not any(isinstance(callback, ProgressBar) for callback in own):
        callbacks.append(EnvStepsProgressBar())
    # last, so that what it saves on a signal holds what the user's callbacks made of the same iteration
    callbacks += [*own, GracefulStop(folder / "last.ckpt" if saves else None)]
    loggers: list[Any] = []
    given.pop("callbacks", None)
    if given.pop("logger", True) in (None, True) and writes:
        loggers = [
            MetricsCSV(run_dir / "metrics.csv", lambda: model.env_steps, resume_step),
            TensorBoardEvents(run_dir, lambda: model.env_steps, resume_step),
        ]
    loggers += make_loggers(config.loggers, run_dir)
    defaults: dict[str, Any] = {
        "accelerator": choose_accelerator(model.policy, env, config.rollout.overlap or config.rollout.processes > 1),
        "devices": 1,
        "max_epochs": -1,
        "check_val_every_n_epoch": config.evaluation.every_n_epochs,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "default_root_dir": str(run_dir),
        "plugins": [AtomicCheckpointIO(config.checkpoint.keep), *cluster_environment()],
    }
    if not model.objective.trust_region:
        defaults["precision"] = fastest_precision(model.policy, given.get("accelerator", defaults["accelerator"]))
    if not config.evaluation.episodes:
        defaults["limit_val_batches"] = 0
    try:
        return pl.Trainer(**(defaults | given), callbacks=callbacks, logger=loggers)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"trainer: {type(error).__name__}: {' '.join(str(error).split())}") from error


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that decide results."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _headline(config: Config, model: Any, trainer: Any, run_dir: Path) -> str:
    import torch

    parameters = sum(p.numel() for p in model.parameters())
    batch = config.env.num_envs * config.rollout.num_steps * trainer.world_size
    threads = torch.get_num_threads()
    device = trainer.strategy.root_device.type
    chosen = "" if "precision" in config.trainer or trainer.precision == "32-true" else " (faster on this CPU)"
    idle = " (a GPU is idle: small networks are faster on the CPU; trainer.accelerator=gpu overrides)"
    return (
        f"{config.env.id}: {config.total_env_steps:,} steps, {trainer.world_size} x {config.env.num_envs} envs x "
        f"{config.rollout.num_steps} steps = {batch:,} per iteration, {parameters:,} parameters, seed {config.seed}\n"
        f"on {device}{idle if device == 'cpu' and torch.cuda.is_available() else ''}, "
        f"{threads} thread{'s' if threads > 1 else ''}, {trainer.precision}{chosen}; writing to {run_dir}"
    )


def _protocol(env: EnvConfig) -> dict[str, Any]:
    """Return the settings that say which task the results are of."""
    from lightning_ppo.envs.atari import is_atari

    settings = to_container(env)
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
        ("speed", f"{summary['env_steps_per_second']:,.0f} steps/s"),
        (
            "time",
            f"{summary['fit_seconds']:.1f} s of training (collecting {summary['collect_seconds']:.1f}, "
            f"updating {summary['update_seconds']:.1f})",
        ),
        ("curves", f"tensorboard --logdir {run_dir}"),
    ]
    if (run_dir / "checkpoints" / "last.ckpt").exists():
        rows.append(("play it", f"python -m lightning_ppo evaluate {run_dir}/checkpoints/last.ckpt"))
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())  # for environments and classes of the user's own
    sys.exit(main())
