"""`pull REPOSITORY`: fetch an agent from the Hugging Face Hub."""

import argparse

NAME = "pull"
HELP = "fetch an agent, its settings and results from the Hugging Face Hub"
EXAMPLES = (("pull me/ppo-cartpole --output agent", "then: evaluate agent/agent.ckpt"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("repository", metavar="REPOSITORY", help="user/name, or the path of a folder")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="where to write")
    parser.add_argument("--revision", help="a branch, tag or commit of the repository")


def run(options: argparse.Namespace) -> int:
    """Pull, and print the next command."""
    from pathlib import Path

    from lightning_ppo.interop.hub import pull
    from lightning_ppo.support.program import columns, program

    agent, *_ = pull(options.repository, Path(options.output), options.revision)
    print(columns([("play it", f"{program()} evaluate {agent}")]))
    return 0
