"""Watch an agent: play episodes in an environment that renders, in a window or into a file."""

import ctypes.util
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv

from lightning_ppo.envs import make_vector_env
from lightning_ppo.envs.atari import EMULATOR_FPS, is_atari
from lightning_ppo.envs.faults import close_env
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.support.env_specs import find_spec
from lightning_ppo.support.errors import EnvironmentFault, UserError, described
from lightning_ppo.support.packages import install
from lightning_ppo.support.randomness import derive_seeds

DEFAULT_FPS = 30
PREVIEW_FRAMES = 100
"""Frames that a preview has at most."""
PREVIEW_WIDTH = 240
"""Pixels that a preview is wide at most."""

_NO_WINDOW = "dummy"
"""SDL's video driver that shows nothing."""

FrameSink = Callable[[np.ndarray], None]
"""Takes a frame (height, width, 3) of bytes."""


class VideoFile:
    """An MP4 file (H.264) that is written frame by frame and finished on leaving its context.

    Args:
        path: Where it goes; folders are created.
        fps: Frames per second.

    Raises:
        UserError: If the package that encodes it is missing.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float) -> None:
        try:
            import imageio_ffmpeg
        except ModuleNotFoundError:
            raise UserError(f"writing videos needs imageio-ffmpeg: {install('video')}") from None
        self.path, self.fps = Path(path), fps
        self._open = imageio_ffmpeg.write_frames
        self._writer: Generator[None, Any, None] | None = None

    def __call__(self, frame: np.ndarray) -> None:
        """Append a frame."""
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = (frame.shape[1], frame.shape[0])
            self._writer = self._open(str(self.path), size, fps=self.fps, macro_block_size=2, ffmpeg_log_level="error")
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(frame))

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


class Preview:
    """Keeps evenly spaced frames of a video whose length is not known, small, as an animated GIF.

    Args:
        fps: Frames per second of the video.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.frames: list[np.ndarray] = []
        self._stride, self._seen = 1, 0

    def __call__(self, frame: np.ndarray) -> None:
        """Take in the next frame."""
        if self._seen % self._stride == 0:
            shrink = -(-frame.shape[1] // PREVIEW_WIDTH)
            self.frames.append(frame[::shrink, ::shrink].copy())
        self._seen += 1
        if len(self.frames) > PREVIEW_FRAMES:
            self.frames, self._stride = self.frames[::2], 2 * self._stride

    def gif(self) -> bytes:
        """Return the animation."""
        from PIL import Image

        images = [Image.fromarray(frame) for frame in self.frames]
        buffer = BytesIO()
        # players take less than 20 ms as a mistake
        duration = max(20, round(1000 * self._stride / self.fps))
        images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
        return buffer.getvalue()


class _Filmed(gymnasium.Wrapper):
    """Hands on every frame of some episodes, the last ones too, which a vector environment would reset away."""

    def __init__(self, env: gymnasium.Env, sinks: Sequence[FrameSink], episodes: int) -> None:
        super().__init__(env)
        self.sinks, self.episodes = sinks, episodes

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        if self.episodes:
            self._film()
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._film()
        self.episodes -= bool(result[2] or result[3])
        return result

    def _film(self) -> None:
        try:
            frame = self.env.render()
        except Exception as error:
            raise _unrenderable(error) from error
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise EnvironmentFault("the environment's render() returns no picture; render_mode rgb_array is needed")
        for sink in self.sinks:
            sink(frame)


class Stage:
    """One environment that renders, to play episodes in.

    Args:
        env: Which environment.
        render_mode: `rgb_array` for files, `human` for a window.

    Raises:
        UserError: If it cannot be built or rendered, or there is no display for a window.
    """

    def __init__(self, env: EnvConfig, render_mode: str = "rgb_array") -> None:
        if render_mode == "human" and not _has_display():
            raise UserError("there is no display to open a window on; write a file instead, with --video out.mp4")
        _render_without_display()
        if find_spec(env.id).entry_point is None:
            raise EnvironmentFault(
                f"env.id: {env.id} steps many copies at once and has no single one to show; name one that is single"
            )
        single = replace(env, num_envs=1, backend="sync", stagger=False, timeout=None, on_error="stop")
        vector_env = make_vector_env(single, render_mode)
        assert isinstance(vector_env, SyncVectorEnv)
        self.env, self.action_mask = vector_env, env.action_mask
        self.copy = vector_env.envs[0]
        # of the frames that a step skips none is shown
        self._fps = EMULATOR_FPS / env.atari.frame_skip if is_atari(env.id) else None
        if self.copy.render_mode != render_mode:
            vector_env.close()
            raise EnvironmentFault(
                f"env.id: {env.id} does not offer render_mode={render_mode}; its metadata names "
                f"{', '.join(self.copy.metadata.get('render_modes', [])) or 'none'}"
            )
        self.filmed = render_mode == "rgb_array"

    @property
    def fps(self) -> float:
        """Frames per second at which the environment shows itself in real time."""
        return self._fps or float(self.copy.metadata.get("render_fps") or DEFAULT_FPS)

    def picture(self) -> np.ndarray:
        """Return the first frame (height, width, 3) of an episode."""
        frames: list[np.ndarray] = []
        _Filmed(self.copy, [frames.append], 1).reset(seed=0)
        return frames[0]

    def play(
        self,
        policy: ActorCritic,
        episodes: int = 1,
        seed: int = 0,
        deterministic: bool = True,
        sinks: Sequence[FrameSink] = (),
    ) -> Episodes:
        """Play episodes one after the other and return their returns and lengths.

        Args:
            policy: The agent.
            episodes: How many.
            seed: Seeds environment and sampling.
            deterministic: Play the mode of the action distribution instead of sampling.
            sinks: Take the frames, where the render mode makes any.

        Raises:
            EnvironmentFault: If the environment misbehaves or cannot be rendered.
        """
        if self.filmed:
            self.env.envs[0] = _Filmed(self.copy, sinks, episodes)
        seeds = derive_seeds(seed, 0, 1, "video")
        options: dict[str, Any] = {"deterministic": deterministic, "action_mask": self.action_mask}
        return play(policy, self.env, episodes, seeds=seeds, seed=seed, **options)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        close_env(self.env)


def _unrenderable(error: Exception) -> EnvironmentFault:
    remedy = ""
    if "mujoco" in sys.modules and not _has_display():
        remedy = "; without a display MuJoCo needs MUJOCO_GL=egl (package libegl1) or MUJOCO_GL=osmesa (libosmesa6)"
    return EnvironmentFault(f"the environment cannot be rendered: {described(error)}{remedy}")


def _has_display() -> bool:
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return True
    return os.environ.get("SDL_VIDEODRIVER", _NO_WINDOW) != _NO_WINDOW


def _render_without_display() -> None:
    """Let pygame do without a window, and MuJoCo draw through EGL or OSMesa, unless the person has chosen."""
    if _has_display():
        return
    os.environ.setdefault("SDL_VIDEODRIVER", _NO_WINDOW)
    found = [name for library, name in (("EGL", "egl"), ("OSMesa", "osmesa")) if ctypes.util.find_library(library)]
    if found:
        os.environ.setdefault("MUJOCO_GL", found[0])
