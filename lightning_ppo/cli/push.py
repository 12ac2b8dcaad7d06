"""`push RUN_DIR REPOSITORY`: share a trained agent on the Hugging Face Hub."""

import argparse

NAME = "push"
HELP = "share the agent of a run on the Hugging Face Hub, with settings, results, video and model card"
EXAMPLES = (
    ("push runs/mine me/ppo-cartpole", "after `hf auth login`"),
    ("push runs/mine ./shared", "into a folder instead"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the directory of a run that has finished")
    parser.add_argument("repository", metavar="REPOSITORY", help="user/name, or the path of a folder")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--no-video", action="store_true", help="do not film an episode")


def run(options: argparse.Namespace) -> int:
    """Push, and tell where it is."""
    from pathlib import Path

    from lightning_ppo.interop.hub import push

    print("\n".join(push(Path(options.run_dir), options.repository, options.private, not options.no_video)))
    return 0
