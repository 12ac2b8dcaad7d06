"""The command `lightning-ppo`, one module for each subcommand; torch and the like are imported when one runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lightning_ppo.cli import check_env, configs, doctor, evaluate, export, import_sb3, pull, push, report, train, tune
from lightning_ppo.speed.waiting import sleep_while_waiting
from lightning_ppo.support.errors import ConfigError, nearest, print_error
from lightning_ppo.support.program import columns, program

COMMANDS = (evaluate, tune, report, export, import_sb3, push, pull, configs, check_env, doctor)
"""Modules with NAME, HELP and EXAMPLES, `add_arguments(parser)` and `run(options)`, which returns the exit code.

The command `train` takes settings instead of options, so it reads its arguments itself."""

OVERVIEW = """\
examples:
{examples}

Every setting of `train` and its default: {program} train --print-config.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _block(examples: Sequence[tuple[str, str]]) -> str:
    return columns([(f"{program()} {command}", meaning) for command, meaning in examples], "  ")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; parsing raises ConfigError instead of exiting."""
    layout = argparse.RawDescriptionHelpFormatter
    first = [example for command in (train, *COMMANDS) for example in command.EXAMPLES[:1]]
    parser = _Parser(
        prog=program(),
        description="Proximal Policy Optimization on PyTorch Lightning.",
        epilog=OVERVIEW.format(examples=_block(first), program=program()),
        formatter_class=layout,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    subparsers.add_parser(train.NAME, help=train.HELP, add_help=False)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=f"examples:\n{_block(command.EXAMPLES)}",
            formatter_class=layout,
        )
        command.add_arguments(subparser)
        subparser.add_argument("--debug", action="store_true", help="print full tracebacks")
        subparser.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 if it failed, 2 for a mistake on the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sleep_while_waiting()
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # users' classes are there; an installed package is never replaced
    if arguments[:1] == [train.NAME]:
        return train.main(arguments[1:])
    debug = "--debug" in arguments
    parser = make_parser()
    if not arguments:
        parser.print_help()
        return 0
    names = [command.NAME for command in (train, *COMMANDS)]
    try:
        if not arguments[0].startswith("-") and arguments[0] not in names:
            raise ConfigError(f"{arguments[0]}: unknown command; did you mean {nearest(arguments[0], names)}?")
        options = parser.parse_args(arguments)
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return print_error(error, debug, "--debug")
