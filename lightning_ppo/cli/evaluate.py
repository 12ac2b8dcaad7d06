"""`evaluate CKPT`: play a checkpoint's agent, print its returns, and show it."""

import argparse
import json
import sys

from lightning_ppo.evaluation.checkpoint import evaluate
from lightning_ppo.support.errors import TRUST_HELP

NAME = "evaluate"
HELP = "play a trained agent and print its returns as JSON; watch it in a video or a window"
EXAMPLES = (
    ("evaluate runs/mine/checkpoints/best.ckpt", "100 episodes"),
    ("evaluate CKPT --episodes 20 --stochastic", "sampled actions"),
    ("evaluate CKPT --video out.mp4", "one episode as a video"),
    ("evaluate CKPT --render human", "one episode in a window"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint that training has written")
    parser.add_argument("--episodes", type=int, help="episodes to play (default: 100, or 1 if they are shown)")
    parser.add_argument("--seed", type=int, default=0, help="seed of environments and sampling (default: 0)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--deterministic", action="store_true", help="take the mode of the action distribution")
    mode.add_argument(
        "--stochastic", action="store_true", help="sample actions (default: what the run's evaluations did)"
    )
    parser.add_argument("--num-envs", type=int, default=8, help="copies that play side by side (default: 8)")
    parser.add_argument("--trust", metavar="NAME", action="append", default=[], help=TRUST_HELP)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--video", metavar="FILE.mp4", help="write the episodes to a video, one after the other")
    shown.add_argument("--render", choices=["human"], help="show the episodes in a window")


def run(options: argparse.Namespace) -> int:
    """Play and print."""
    from lightning_ppo.speed.hardware import limit_threads

    limit_threads()
    result = evaluate(
        options.checkpoint,
        options.episodes,
        options.seed,
        None if options.deterministic == options.stochastic else options.deterministic,
        options.num_envs,
        options.video,
        options.render,
        options.trust,
    )
    print(json.dumps(result))
    if options.video:
        print(f"wrote {options.video}, episodes: {result['episodes']}", file=sys.stderr)
    return 0
