"""The commands of `python -m lightning_ppo`, one module each; torch and the like are imported when one runs."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from lightning_ppo import errors
from lightning_ppo.cli import doctor, evaluate, export, import_sb3, report
from lightning_ppo.config import nearest
from lightning_ppo.errors import ConfigError

COMMANDS = (evaluate, report, export, import_sb3, doctor)
"""Modules with NAME, HELP and EXAMPLES, `add_arguments(parser)` and `run(options)`, which returns the exit code."""

OVERVIEW = """\
Train with train.py; these commands are for what comes after.

examples:
{examples}

Training: python train.py [CONFIG.yaml ...] [key=value ...], see python train.py --help.
Configs are YAML files in configs/; every setting and its default: python train.py --print-config.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _block(examples: Sequence[tuple[str, str]]) -> str:
    width = max(len(command) for command, _ in examples)
    return "\n".join(f"  {command:<{width}}  {meaning}".rstrip() for command, meaning in examples)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; parsing raises ConfigError instead of exiting."""
    layout = argparse.RawDescriptionHelpFormatter
    epilog = OVERVIEW.format(examples=_block([example for command in COMMANDS for example in command.EXAMPLES[:1]]))
    parser = _Parser(
        prog="python -m lightning_ppo",
        description="Commands of lightning_ppo, Proximal Policy Optimization on PyTorch Lightning.",
        epilog=epilog,
        formatter_class=layout,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
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
    debug = "--debug" in arguments
    parser = make_parser()
    if not arguments:
        parser.print_help()
        return 0
    names = [command.NAME for command in COMMANDS]
    try:
        if not arguments[0].startswith("-") and arguments[0] not in names:
            raise ConfigError(f"{arguments[0]}: unknown command; did you mean {nearest(arguments[0], names)}?")
        options = parser.parse_args(arguments)
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return errors.report(error, debug, "--debug")
