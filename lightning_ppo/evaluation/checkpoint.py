"""Play the agent of a checkpoint in the environment it was trained in."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from lightning_ppo.support.errors import CheckpointError, ConfigError


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
        return_mean, return_std, length_mean and episodes; success_rate where the environment tells success, and info,
        the means of what the run's `env.log_info` names.

    Raises:
        ConfigError: If an argument is out of range.
        CheckpointError: If the checkpoint cannot be used.
        EnvironmentFault: If the environment cannot be built or rendered, or misbehaves.
    """
    from lightning_ppo.envs.faults import close_env
    from lightning_ppo.evaluation.play import make_evaluation_env, play
    from lightning_ppo.evaluation.video import Stage, VideoFile
    from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
    from lightning_ppo.settings.loading import as_section
    from lightning_ppo.settings.trust import check_names
    from lightning_ppo.speed.hardware import use_cores
    from lightning_ppo.support.checkpoint_files import read_checkpoint
    from lightning_ppo.support.randomness import derive_seeds
    from lightning_ppo.update.evaluation_results import told_by, told_means
    from lightning_ppo.update.ppo import PPO

    if episodes is None:
        episodes = 1 if video or render else 100
    if episodes < 1 or num_envs < 1 or seed < 0:
        raise ConfigError(
            f"--episodes, --num-envs: must be at least 1, --seed: not negative; got {episodes}, {num_envs} and {seed}"
        )
    if video is not None and not video.endswith(".mp4"):
        raise ConfigError(f"--video: expected a name that ends in .mp4, got {video}")
    content = check_names(read_checkpoint(checkpoint), checkpoint, trust)
    sections = content.get("datamodule_hyper_parameters", {})
    settings = sections.get("env", {})
    if not settings.get("id"):
        raise CheckpointError(f"{checkpoint}: trained in an environment built in Python, which the file cannot name")
    # what fails here ends it at once
    env_settings = replace(as_section(EnvConfig, settings, "env"), timeout=None, on_error="stop")
    policy = PPO.load_from_checkpoint(checkpoint, map_location="cpu", trust=trust).policy
    if deterministic is None:
        deterministic = as_section(EvaluationConfig, sections.get("evaluation"), "evaluation").deterministic
    use_cores(policy)
    with ExitStack() as stack:
        if video is not None or render is not None:
            stage = stack.enter_context(Stage(env_settings, render or "rgb_array"))
            files = [] if video is None else [stack.enter_context(VideoFile(video, stage.fps))]
            played = stage.play(policy, episodes, seed, deterministic, files)
        else:
            env = make_evaluation_env(env_settings, min(num_envs, episodes), seed)
            stack.callback(close_env, env)
            seeds = derive_seeds(seed, 0, env.num_envs, "evaluation")
            read = {"action_mask": env_settings.action_mask, "log_info": env_settings.log_info}
            played = play(policy, env, episodes, seeds=seeds, deterministic=deterministic, seed=seed, **read)
    told = told_means([told_by(played)])
    info = {name.removeprefix("info/"): value for name, value in told.items() if name.startswith("info/")}
    rate = {name: value for name, value in told.items() if name == "success_rate"}
    return {
        "return_mean": float(played.returns.mean()),
        "return_std": float(played.returns.std(correction=0)),
        "length_mean": float(played.lengths.double().mean()),
        "episodes": len(played.returns),
        **rate,
        **({"info": info} if info else {}),
    }
