"""`import-sb3 MODEL.zip OUT.ckpt`: import an agent of Stable-Baselines3."""

import argparse

NAME = "import-sb3"
HELP = "turn an agent that PPO of Stable-Baselines3 has saved into a checkpoint"
EXAMPLES = (
    ("import-sb3 model.zip agent.ckpt --env CartPole-v1", "acts as the original"),
    ("import-sb3 model.zip agent.ckpt --env Hopper-v5 --statistics vecnormalize.npz", ""),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("source", metavar="MODEL.zip", help="what model.save() has written; MlpPolicy or CnnPolicy")
    parser.add_argument("target", metavar="OUT.ckpt", help="the checkpoint to write")
    parser.add_argument("--env", required=True, help="the environment's id, or package.module:EnvClass")
    parser.add_argument("--statistics", metavar="FILE.npz", help="numbers of its VecNormalize, see docs/migration.md")


def run(options: argparse.Namespace) -> int:
    """Convert, and print the next commands."""
    import logging

    from lightning_ppo.interop.sb3 import convert
    from lightning_ppo.support.program import columns, program

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for note in convert(options.source, options.target, options.env, options.statistics):
        print(f"note: {note}")
    more = f"{program()} train resume={options.target} run_dir=RUN_DIR total_env_steps=N"
    print(columns([("play it", f"{program()} evaluate {options.target}"), ("train it further", more)]))
    return 0
