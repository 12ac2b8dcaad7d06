"""`train [CONFIG ...] [key=value ...]`: train an agent."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ppo.support.errors import print_error
from lightning_ppo.support.program import columns, program

if TYPE_CHECKING:
    from lightning_ppo.settings.sections import Config

NAME = "train"
HELP = "train an agent"
EXAMPLES = (
    ("train", "CartPole-v1, solved in under a minute"),
    ("train pendulum seed=3", "another config, another seed"),
    ("train mine.yaml", "a config of yours"),
    ("train env.id=Acrobot-v1 total_env_steps=300000", "any Gymnasium environment"),
    ("train env.id=my_package.my_env:MyEnv", "an environment class of yours"),
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

settings met most often (all of them, with their defaults: {train} --print-config):
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
    from lightning_ppo.settings.reference import settings

    by_key = {setting.key: setting for setting in settings()}
    examples = [(f"{called_as()}{command.removeprefix('train')}", meaning) for command, meaning in EXAMPLES]
    return HELP_TEXT.format(
        program=program(),
        train=called_as(),
        examples=columns(examples, "  "),
        settings=columns([(key, by_key[key].meaning) for key in SHOWN], "  "),
        folder=named_configs.FOLDER,
        configs="\n  ".join(textwrap.wrap(" ".join(named_configs.names()), 100)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for a mistake in the settings, 1 for a failed run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument in ("--help", "-h") for argument in arguments):
        print(help_text(), end="")
        return 0
    debug = "debug=true" in [argument.lower() for argument in arguments]
    try:
        from lightning_ppo.run.arguments import read_arguments
        from lightning_ppo.settings.loading import to_yaml

        config = read_arguments([a for a in arguments if a != "--print-config"])
        debug = config.debug
        if "--print-config" in arguments:
            print(to_yaml(config), end="")
            return 0
        return _train(config)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return print_error(error, debug, "debug=true")


def _train(config: "Config") -> int:
    from lightning_ppo.run.stopping import Interrupted
    from lightning_ppo.run.training import train

    try:
        train(config)
    except Interrupted as stopped:
        print(f"stopped; continue with: {called_as()} run_dir=RUN_DIR resume=last", file=sys.stderr)
        return stopped.exit_code
    return 0
