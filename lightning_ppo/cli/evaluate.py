"""`evaluate CKPT`: play a checkpoint's agent, print its returns, and show it."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from lightning_ppo.errors import TRUST_HELP, CheckpointError, ConfigError

NAME = "evaluate"
HELP = "play a trained agent and print its returns as JSON; watch it in a video or a window"
EXAMPLES = (
    ("python -m lightning_ppo evaluate runs/mine/checkpoints/best.ckpt", "100 episodes"),
    ("python -m lightning_ppo evaluate CKPT --episodes 20 --stochastic", "sampled actions"),
    ("python -m lightning_ppo evaluate CKPT --video out.mp4", "one episode as a video"),
    ("python -m lightning_ppo evaluate CKPT --render human", "one episode in a window"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of train.py")
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
    from lightning_ppo.hardware import limit_threads

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
    return 0


def evaluate(
    checkpoint: str,
    episodes: int | None = None,
    seed: int = 0,
    deterministic: bool | None = None,
    num_envs: int = 8,
    video: str | None = None,
    render: str | None = None,
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """Play the agent of a checkpoint in the environment it was trained in; nothing else is needed.

    Args:
        checkpoint: Path of the checkpoint.
        episodes: Episodes to play; None plays 100, or one if it is shown.
        seed: Seeds environments and sampling.
        deterministic: Play the mode of the action distribution instead of sampling; None does what the run's
            evaluations did.
        num_envs: Copies that play side by side; one if they are shown.
        video: Path of an MP4 file to write.
        render: `human` shows the episodes in a window.
        trust: Packages, or whole names, that the checkpoint may name besides what any file may.

    Returns:
        return_mean, return_std, length_mean and episodes.

    Raises:
        ConfigError: If an argument is out of range.
        CheckpointError: If the checkpoint cannot be used.
        EnvironmentFault: If the environment cannot be built or rendered, or misbehaves.
    """
    from lightning_ppo.checkpoint import read_checkpoint
    from lightning_ppo.config import EnvConfig, EvaluationConfig, as_section
    from lightning_ppo.envs import make_vector_env
    from lightning_ppo.envs.faults import close_env
    from lightning_ppo.evaluation import play
    from lightning_ppo.hardware import use_cores
    from lightning_ppo.module import PPO
    from lightning_ppo.random_state import own_generators
    from lightning_ppo.seeding import derive_seeds
    from lightning_ppo.trust import check_names
    from lightning_ppo.video import Stage, VideoFile

    if episodes is None:
        episodes = 1 if video or render else 100
    if episodes < 1 or num_envs < 1 or seed < 0:
        raise ConfigError(
            f"--episodes, --num-envs: must be at least 1, --seed: not negative; got {episodes}, {num_envs} and {seed}"
        )
    if video is not None and not video.endswith(".mp4"):
        raise ConfigError(f"--video: expected a name that ends in .mp4, got {video}")
    content = read_checkpoint(checkpoint)
    check_names(content, checkpoint, trust)
    sections = content.get("datamodule_hyper_parameters", {})
    settings = sections.get("env", {})
    if not settings.get("id"):
        raise CheckpointError(f"{checkpoint}: trained in an environment built in Python, which the file cannot name")
    env_settings = as_section(EnvConfig, settings, "env")
    policy = PPO.load_from_checkpoint(checkpoint, map_location="cpu", trust=trust).policy
    if deterministic is None:
        deterministic = as_section(EvaluationConfig, sections.get("evaluation"), "evaluation").deterministic
    use_cores(policy)
    if video is not None:
        with Stage(env_settings) as stage, VideoFile(video, stage.fps) as file:
            played = stage.play(policy, episodes, seed, deterministic, [file])
    elif render is not None:
        with Stage(env_settings, render) as stage:
            played = stage.play(policy, episodes, seed, deterministic)
    else:
        copies = min(num_envs, episodes)
        with own_generators(derive_seeds(seed, 0, 1, "evaluation process")[0]):
            env = make_vector_env(
                env_settings.id,
                copies,
                backend=env_settings.backend,
                kwargs=env_settings.kwargs,
                wrappers=env_settings.wrappers,
                atari=env_settings.atari,
                max_episode_steps=env_settings.max_episode_steps,
                scores=env_settings.scores,
            )
        try:
            seeds = derive_seeds(seed, 0, copies, "evaluation")
            mask = env_settings.action_mask
            played = play(policy, env, episodes, seeds=seeds, deterministic=deterministic, seed=seed, action_mask=mask)
        finally:
            close_env(env)
    return {
        "return_mean": float(played.returns.mean()),
        "return_std": float(played.returns.std(correction=0)),
        "length_mean": float(played.lengths.double().mean()),
        "episodes": len(played.returns),
    }
