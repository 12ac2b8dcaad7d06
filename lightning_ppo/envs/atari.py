"""Atari games under one protocol on every backend, and the clipped rewards and lost lives that are learnt from."""

import copy
import logging
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv, VectorWrapper

from lightning_ppo.envs.training_signal import REWARDS, TERMINATIONS
from lightning_ppo.settings.environment import AtariConfig, EnvConfig
from lightning_ppo.support.errors import ConfigError

_log = logging.getLogger(__name__)

NAMESPACE = "ALE/"
EMULATOR_FPS = 60.0
"""Frames per second of the console."""
NOT_STAGGERED = "Atari games end at different times by themselves"
"""Why `env.stagger` cuts none off."""
OURS = {
    "noop_max": "noop_max",
    "fire_reset": "fire_reset",
    "use_fire_reset": "fire_reset",
    "frameskip": "frame_skip",
    "frame_skip": "frame_skip",
    "stack_num": "frame_stack",
    "img_height": "screen_size",
    "img_width": "screen_size",
    "repeat_action_probability": "repeat_action_probability",
    "full_action_space": "full_action_space",
    "max_num_frames_per_episode": "max_frames",
    "max_episode_steps": "max_frames",
    "reward_clipping": "clip_rewards",
    "reward_clip": "clip_rewards",
    "episodic_life": "terminate_on_life_loss",
    "life_loss_info": "terminate_on_life_loss",
}
"""Settings of the backends by our names for them, which hold for all of them."""


def is_atari(env_id: str) -> bool:
    """Return whether an id names a game of the Arcade Learning Environment."""
    return env_id.startswith(NAMESPACE)


def check_kwargs(kwargs: dict[str, Any]) -> None:
    """Raise ConfigError if `env.kwargs` sets what `env.atari` sets for every backend."""
    for name in kwargs:
        if name in OURS:
            raise ConfigError(f"env.kwargs.{name}: set env.atari.{OURS[name]}, which holds for every backend")


def native_spec(spec: EnvSpec, atari: AtariConfig) -> EnvSpec:
    """Return a game's spec whose vector entry point is the native one, under the protocol."""
    spec = copy.deepcopy(spec)
    spec.vector_entry_point = "lightning_ppo.envs.atari_vector:NativeAtari"
    spec.kwargs = {
        "game": spec.kwargs["game"],
        "noop_max": atari.noop_max,
        "use_fire_reset": atari.fire_reset,
        "frameskip": atari.frame_skip,
        "stack_num": atari.frame_stack,
        "img_height": atari.screen_size,
        "img_width": atari.screen_size,
        "repeat_action_probability": atari.repeat_action_probability,
        "full_action_space": atari.full_action_space,
        "max_num_frames_per_episode": atari.max_frames,
    }
    return spec


def copy_settings(atari: AtariConfig) -> tuple[dict[str, Any], list[Any]]:
    """Return arguments of Gymnasium's environment, and the wrappers of each copy that make the protocol."""
    kwargs = {
        "frameskip": 1,
        "repeat_action_probability": atari.repeat_action_probability,
        "full_action_space": atari.full_action_space,
        "max_num_frames_per_episode": atari.max_frames,
    }
    preprocessing = {
        "noop_max": atari.noop_max,
        "frame_skip": atari.frame_skip,
        "screen_size": atari.screen_size,
    }
    wrappers: list[Any] = ["lightning_ppo.envs.atari.FireReset"] if atari.fire_reset else []
    wrappers += [
        {"class_path": "gymnasium.wrappers.AtariPreprocessing", "init_args": preprocessing},
        {
            "class_path": "gymnasium.wrappers.FrameStackObservation",
            "init_args": {"stack_size": atari.frame_stack, "padding_type": "zero"},
        },
    ]
    return kwargs, wrappers


def pool_settings(atari: AtariConfig) -> dict[str, Any]:
    """Return EnvPool's settings for the protocol."""
    if atari.noop_max == 0:
        _log.warning("env.atari.noop_max=0: EnvPool draws from 1 idle frame on, so games begin with one")
    return {
        "noop_max": max(1, atari.noop_max),  # EnvPool crashes at 0
        "use_fire_reset": atari.fire_reset,
        "frame_skip": atari.frame_skip,
        "stack_num": atari.frame_stack,
        "img_height": atari.screen_size,
        "img_width": atari.screen_size,
        "repeat_action_probability": atari.repeat_action_probability,
        "full_action_space": atari.full_action_space,
        "max_episode_steps": atari.max_frames // atari.frame_skip,
        "reward_clip": False,
        "episodic_life": False,
    }


class FireReset(gymnasium.Wrapper):
    """Presses FIRE for one frame at the start of a game that has it, as the native vector environment does."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a game."""
        observation, info = self.env.reset(seed=seed, options=options)
        meanings = self.env.get_wrapper_attr("get_action_meanings")()
        if "FIRE" in meanings:
            observation, _, _, _, info = self.env.step(meanings.index("FIRE"))
        return observation, info


class AtariLessons(VectorWrapper):
    """Adds to infos what to learn from: rewards clipped to their sign, lost lives as terminations.

    The game does not change: it keeps its scores and continues until the last life is lost (Mnih et al. 2015,
    "Human-level control through deep reinforcement learning", methods).

    Args:
        env: Copies of a game whose infos count `lives`.
        atari: Which of the two apply.
    """

    def __init__(self, env: VectorEnv, atari: AtariConfig) -> None:
        super().__init__(env)
        self.clip, self.on_life_loss = atari.clip_rewards, atari.terminate_on_life_loss
        self.lives = np.zeros(env.num_envs, dtype=np.int32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start games."""
        observations, infos = self.env.reset(**kwargs)
        self.lives = np.array(infos["lives"], dtype=np.int32)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step with actions (N,)."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        lives = np.array(infos["lives"], dtype=np.int32)
        # where a game ended, the count may already be that of the next one; some games show no life for a while before
        # they continue with the next (Q*bert) or end
        lost = (lives < self.lives) & (lives > 0) & ~truncations if self.on_life_loss else np.zeros_like(terminations)
        self.lives = lives
        infos = {
            **infos,
            REWARDS: np.sign(rewards) if self.clip else rewards,
            TERMINATIONS: terminations | lost,
        }
        return observations, rewards, terminations, truncations, infos


def with_lessons(env: VectorEnv, settings: EnvConfig) -> VectorEnv:
    """Return training environments that tell what to learn from, where that differs from the score."""
    atari = settings.atari
    if not is_atari(settings.id) or not (atari.clip_rewards or atari.terminate_on_life_loss):
        return env
    return AtariLessons(env, atari)
