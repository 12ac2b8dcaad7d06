"""Commands on trained agents: `python -m lightning_ppo evaluate CKPT`."""

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from lightning_ppo.errors import CheckpointError, ConfigError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 if it failed, 2 for a mistake on the command line."""
    parser = argparse.ArgumentParser(prog="python -m lightning_ppo", description="Commands on trained agents.")
    commands = parser.add_subparsers(dest="command", required=True)
    evaluate_parser = commands.add_parser(
        "evaluate", help="play episodes and print their returns as JSON", description="Play a checkpoint's agent."
    )
    evaluate_parser.add_argument("checkpoint", metavar="CKPT", help="path of a checkpoint")
    evaluate_parser.add_argument("--episodes", type=int, default=100, help="episodes to play (default: 100)")
    evaluate_parser.add_argument("--seed", type=int, default=0, help="seed of environments and sampling (default: 0)")
    evaluate_parser.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the mode")
    evaluate_parser.add_argument("--num-envs", type=int, default=8, help="copies that play side by side (default: 8)")
    evaluate_parser.add_argument("--debug", action="store_true", help="print full tracebacks")
    options = parser.parse_args(arguments)
    try:
        result = evaluate(options.checkpoint, options.episodes, options.seed, not options.stochastic, options.num_envs)
    except UserError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        reason = " ".join(str(error).split())[:300]
        print(f"error: {type(error).__name__}: {reason} (--debug shows where)", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def evaluate(
    checkpoint: str, episodes: int = 100, seed: int = 0, deterministic: bool = True, num_envs: int = 8
) -> dict[str, Any]:
    """Play the agent of a checkpoint in the environment it was trained in; nothing else is needed.

    Returns:
        return_mean, return_std, length_mean and episodes.

    Raises:
        ConfigError: If an argument is out of range.
        CheckpointError: If the checkpoint cannot be used.
        EnvironmentFault: If the environment cannot be built or misbehaves.
    """
    from lightning_ppo.checkpoint import read_checkpoint
    from lightning_ppo.envs import make_vector_env
    from lightning_ppo.evaluation import play
    from lightning_ppo.module import PPO
    from lightning_ppo.seeding import derive_seeds

    if episodes < 1 or num_envs < 1 or seed < 0:
        raise ConfigError(
            f"--episodes, --num-envs: must be at least 1, --seed: not negative; got {episodes}, {num_envs} and {seed}"
        )
    content = read_checkpoint(checkpoint)
    env_settings = content.get("datamodule_hyper_parameters", {}).get("env", {})
    if not env_settings.get("id"):
        raise CheckpointError(f"{checkpoint}: trained in an environment built in Python, which the file cannot name")
    model = PPO.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    env = make_vector_env(
        env_settings["id"],
        min(num_envs, episodes),
        backend=env_settings["backend"],
        kwargs=env_settings["kwargs"],
    )
    try:
        seeds = derive_seeds(seed, 0, env.num_envs, "evaluation")
        played = play(model.policy, env, episodes, seeds=seeds, deterministic=deterministic, seed=seed)
    finally:
        env.close()
    return {
        "return_mean": float(played.returns.mean()),
        "return_std": float(played.returns.std(correction=0)),
        "length_mean": float(played.lengths.double().mean()),
        "episodes": len(played.returns),
    }


if __name__ == "__main__":
    sys.exit(main())
