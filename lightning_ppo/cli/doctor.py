"""`doctor`: what works on this machine, and what to install for the rest."""

import argparse

NAME = "doctor"
HELP = "show versions, devices, compilers, environments and extras, and what is missing for what"
EXAMPLES = (("python -m lightning_ppo doctor", "paste its output into a bug report"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the command takes no arguments."""


def run(options: argparse.Namespace) -> int:
    """Look and print."""
    from lightning_ppo.doctor import examine, to_text

    print(to_text(examine()))
    return 0
