"""`train [CONFIG ...] [key=value ...]`: train an agent."""

import importlib
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ppo.cli.seeds import take_seeds, train_seeds
from lightning_ppo.support.errors import ConfigError, nearest, print_error
from lightning_ppo.support.program import columns, program

if TYPE_CHECKING:
    from lightning_ppo.settings.reference import Setting
    from lightning_ppo.settings.sections import Config

NAME = "train"
HELP = "train an agent"
EXAMPLES = (
    ("train", "CartPole-v1, solved in under a minute"),
    ("train pendulum seed=3", "another config, another seed"),
    ("train mine.yaml", "a config of yours"),
    ("train env.id=Acrobot-v1 total_env_steps=300000", "any Gymnasium environment"),
    ("train env.id=my_package.my_env:MyEnv", "an environment class of yours"),
    ("train pendulum seeds=5", "five runs side by side, and what they say together; seed=1,2,3 works, too"),
    ("train run_dir=runs/mine trainer.max_time=00:01:00:00", ""),
    ("train run_dir=runs/mine resume=last", "continue where it stopped"),
    ("train trainer.devices=2 trainer.strategy=ddp", "two processes; docs/scaling.md has torchrun and SLURM"),
)

HELP_TEXT = """\
usage: {train} [CONFIG ...] [key=value ...]

Train a PPO agent. CONFIG is a .yaml file or the name of one below; without any, cartpole. Later ones and overrides win.

examples:
{examples}

options:
  --print-config    print the resolved settings as YAML and exit
  --help            print this and exit
  --help SECTION    print the settings of a section, their types, defaults and meanings, or one setting

settings met most often (sections with more: {sections}):
{settings}

configs in {folder}:
  {configs}

afterwards:
  {program} evaluate RUN_DIR/checkpoints/best.ckpt    play the agent; --video out.mp4 shows it
  {program} --help                                    everything else
"""
SHOWN = (
    *("seed", "total_env_steps", "run_dir", "env.id", "env.num_envs", "rollout.num_steps", "rollout.gamma"),
    *("update.minibatch_size", "optimizer.learning_rate", "policy.hidden_sizes", "compile"),
)
"""Settings that the help explains."""


def called_as() -> str:
    """Return how this command was called: `python train.py` in a clone, else `lightning-ppo train` or the like."""
    return "python train.py" if Path(sys.argv[0]).name == "train.py" else f"{program()} train"


def help_text() -> str:
    """Return what --help prints; the settings explain themselves."""
    from lightning_ppo.settings import named_configs
    from lightning_ppo.settings.reference import sections, settings

    by_key = {setting.key: setting for setting in settings()}
    examples = [(f"{called_as()}{command.removeprefix('train')}", meaning) for command, meaning in EXAMPLES]
    return HELP_TEXT.format(
        program=program(),
        train=called_as(),
        examples=columns(examples, "  "),
        sections=" ".join(section.key for section in sections() if section.key),
        settings=_listed([by_key[key] for key in SHOWN]),
        folder=named_configs.FOLDER,
        configs="\n  ".join(textwrap.wrap(" ".join(named_configs.names()), 100)),
    )


def section_help(name: str) -> str:
    """Return the settings of a section, or one setting.

    Raises:
        ConfigError: If there is none of that name.
    """
    from lightning_ppo.settings.reference import sections, settings

    by_name = {section.key: section for section in sections()}
    if name in by_name:
        inner = [key for key in by_name if key.startswith(f"{name}.")]
        below = f"\n\nmore: --help {', --help '.join(inner)}" if inner else ""
        return f"{by_name[name].meaning}\n\n{_listed(by_name[name].settings)}{below}\n"
    found = [setting for setting in settings() if setting.key == name]
    if not found:
        keys = [*filter(None, by_name), *(setting.key for setting in settings())]
        raise ConfigError(f"--help {name}: no such section or setting; did you mean {nearest(name, keys)}?")
    return f"{_listed(found)}\n"


def _listed(settings: "Sequence[Setting]") -> str:
    """Return `key=default  type` and the meaning of each setting on lines of at most 100 characters."""
    from lightning_ppo.settings.reference import yaml_text

    lines = []
    for setting in settings:
        lines.append(f"  {setting.key}={yaml_text(setting.default)}  ({setting.type})")
        lines += textwrap.wrap(setting.meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for a mistake in the settings, 1 for a failed run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "debug=true" in [argument.lower() for argument in arguments]
    try:
        asked = [place for place, argument in enumerate(arguments) if argument in ("--help", "-h")]
        if asked:
            names = [argument for argument in arguments[asked[0] + 1 :] if "=" not in argument]
            print("\n".join(section_help(name) for name in names) if names else help_text(), end="")
            return 0
        seeds, others = take_seeds(arguments)
        if seeds and "--print-config" not in arguments:
            return train_seeds(seeds, others, called_as())
        arguments = [*others, f"seed={seeds[0]}"] if seeds else arguments
        from lightning_ppo.run.arguments import read_arguments
        from lightning_ppo.settings.existence import check_existence
        from lightning_ppo.settings.loading import to_yaml

        config = read_arguments([a for a in arguments if a != "--print-config"])
        debug = config.debug
        if "--print-config" in arguments:
            print(to_yaml(config), end="")
            return 0
        check_existence(config)
        return _train(config)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return print_error(error, debug, "debug=true")


def _train(config: "Config") -> int:
    importlib.import_module("lightning_ppo.speed.light_lightning")  # before anything imports Lightning
    from lightning_ppo.run.stopping import Interrupted
    from lightning_ppo.run.training import train

    try:
        train(config)
    except Interrupted as stopped:
        go_on = f"continue with: {called_as()} run_dir={shlex.quote(str(stopped.run_dir))} resume=last"
        print(f"stopped; {'nothing was saved' if stopped.run_dir is None else go_on}", file=sys.stderr)
        return stopped.exit_code
    return 0
