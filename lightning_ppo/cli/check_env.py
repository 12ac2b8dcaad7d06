"""`check-env ENV`: try an environment out and say what training will meet, one line for each finding."""

import argparse

NAME = "check-env"
HELP = "try an environment out: spaces, values, seeds, resuming, infos, speed; one line for each finding"
EXAMPLES = (
    ("check-env my_env:MyEnv", "an environment of your own"),
    ("check-env HalfCheetah-v5 env.backend=async", "with settings of the section env"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("env", metavar="ENV", help="a Gymnasium id, or an import path package.module:EnvClass")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="settings of the section env, as of `train`")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each of two copies (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of environments and actions (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Try and print; the exit code is 1 if training cannot work."""
    from lightning_ppo.evaluation.examination import examine
    from lightning_ppo.settings.loading import load
    from lightning_ppo.speed.hardware import limit_threads
    from lightning_ppo.support.errors import require

    require(options.steps >= 1 and options.seed >= 0, "--steps: must be at least 1, --seed: not negative")
    settings = load([], [f"env.id={options.env}", *options.settings]).env
    limit_threads()
    levels = []
    for level, topic, text in examine(settings, options.steps, options.seed):
        print(f"{level:<4}  {topic:<12}  {text}", flush=True)
        levels.append(level)
    return int("fail" in levels)
