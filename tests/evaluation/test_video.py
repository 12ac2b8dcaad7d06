"""Videos: every frame of an episode in order, headless, and nothing else is changed by filming."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.cli import main as command
from lightning_ppo.evaluation.video import PREVIEW_FRAMES, PREVIEW_WIDTH, Preview, Stage, VideoFile
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.run.recording import RecordVideo
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import as_section
from lightning_ppo.support.errors import ConfigError, EnvironmentFault, UserError
from tests.kit.envs import Count
from tests.kit.preloaded import Command

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")


class Shown(Count):
    """Draws its step t as a grey picture of brightness 20 t."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, length: int = 4, render_mode: str | None = None, broken: bool = False) -> None:
        super().__init__(length)
        self.render_mode, self.broken = render_mode, broken

    def render(self) -> np.ndarray:
        if self.broken:
            raise OSError("no canvas")
        return np.full((48, 64, 3), 20 * self.t, dtype=np.uint8)


SHOWN = EnvConfig("tests.evaluation.test_video:Shown")


def read(path: Path) -> tuple[float, np.ndarray]:
    """Return a file's frames per second and frames (T, height, width, 3)."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True)
    stream = next(line for line in decoded.stderr.decode().splitlines() if "Video:" in line)
    width, height = re.search(r" (\d+)x(\d+)[ ,]", stream).groups()
    frames = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, int(height), int(width), 3)
    return float(re.search(r"([\d.]+) fps", stream).group(1)), frames


def make_policy() -> ActorCritic:
    return ActorCritic(spaces.Box(0.0, 1000.0, (1,), np.float32), spaces.Discrete(2))


def test_every_frame_of_every_episode_is_there_in_order(tmp_path):
    path = tmp_path / "new" / "out.mp4"
    with Stage(SHOWN) as stage, VideoFile(path, stage.fps) as file:
        played = stage.play(make_policy(), episodes=2, sinks=[file])
    assert played.lengths.tolist() == [4, 4]
    fps, frames = read(path)
    assert (frames.shape[1:], fps) == ((48, 64, 3), 10.0)
    # the reset and four steps of each episode; the last frame, brightness 80, is the one that autoreset would hide
    shades = frames.reshape(len(frames), -1).mean(1)
    assert shades == pytest.approx([0, 20, 40, 60, 80] * 2, abs=3)
    assert np.ptp(frames.reshape(len(frames), -1), axis=1).max() <= 4


def test_a_preview_is_small_and_evenly_spaced():
    preview = Preview(fps=50)
    for t in range(1000):
        preview(np.full((400, 600, 3), t % 256, dtype=np.uint8))
    assert 50 <= len(preview.frames) <= PREVIEW_FRAMES
    assert preview.frames[0].shape[1] <= PREVIEW_WIDTH
    # 1000 frames at 50 per second are 20 s, of which every 16th is kept
    assert [int(frame[0, 0, 0]) for frame in preview.frames] == [t % 256 for t in range(0, 1000, 16)]
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(preview.gif()))
    assert (image.format, image.n_frames, image.info["duration"]) == ("GIF", 63, 320)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (EnvConfig("tests.kit.envs:Count"), "render_mode"),
        (EnvConfig("lightning_ppo.envs.torch_envs:TorchCartPole"), "has no single one to show"),
        (
            EnvConfig("tests.evaluation.test_video:Shown", kwargs={"broken": True}),
            "cannot be rendered: OSError: no canvas",
        ),
    ],
)
def test_what_cannot_be_rendered_is_explained(env, message, tmp_path):
    with pytest.raises(EnvironmentFault, match=message), Stage(env) as stage, VideoFile(tmp_path / "a.mp4", 1) as file:
        stage.play(make_policy(), sinks=[file])
    assert list(tmp_path.iterdir()) == []


def test_a_window_needs_a_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="no display to open a window on; write a file instead"):
        Stage(EnvConfig("CartPole-v1"), "human")


def test_a_missing_encoder_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"pip install 'lightning-ppo\[video\]'"):
        VideoFile("out.mp4", 30)


# the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer = fit(folder)
    trainer.save_checkpoint(folder / "agent.ckpt")
    return folder / "agent.ckpt"


def fit(
    folder: Path,
    *callbacks: pl.Callback,
    epochs: int = 1,
    logger: bool | TensorBoardLogger = False,
    evaluation: dict[str, Any] | None = None,
) -> pl.Trainer:
    pl.seed_everything(1, verbose=False)
    data = RolloutDataModule(
        "CartPole-v1", num_envs=4, num_steps=32, rollouts_per_epoch=1, seed=1, evaluation=evaluation
    )
    model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 64})
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    trainer.fit(model, data)
    return trainer


@pytest.mark.parametrize("mode", [[], ["--stochastic"]])
def test_evaluate_films_the_episode_it_reports(mode, checkpoint, tmp_path, capsys):
    pytest.importorskip("pygame", reason="needs the extra video")
    path = tmp_path / "out.mp4"
    assert command(["evaluate", str(checkpoint), "--video", str(path), *mode]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["episodes"] == 1
    fps, frames = read(path)
    assert (frames.shape[1:], fps) == ((400, 600, 3), 50.0)
    assert len(frames) == printed["length_mean"] + 1
    # a black cart on white, in the middle at first, the brown pole above it
    first = frames[0].astype(int)
    assert first[300, 300].max() < 60 and first[20, 20].min() > 240
    assert (np.abs(first[200:280] - [202, 152, 101]).max(-1) < 25).sum() > 100


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_agent_is_played_as_the_run_evaluated_it_unless_told_otherwise(deterministic, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["evaluation"]["deterministic"] = deterministic
    path = tmp_path / "agent.ckpt"
    torch.save(content, path)
    lengths = []
    for mode in ([], ["--deterministic"], ["--stochastic"]):
        command(["evaluate", str(path), "--episodes", "5", *mode])
        lengths.append(json.loads(capsys.readouterr().out)["length_mean"])
    assert lengths[1] != lengths[2]
    assert lengths[0] == lengths[1 if deterministic else 2]


@pytest.mark.parametrize(("given", "played"), [(None, False), (True, True)])
def test_videos_show_what_is_evaluated_unless_told_otherwise(given, played, tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr("lightning_ppo.run.recording.VideoFile", lambda path, fps: nullcontext())
    monkeypatch.setattr(Stage, "play", lambda self, policy, episodes, seed, mode, sinks: modes.append(mode))
    fit(tmp_path, RecordVideo(1, deterministic=given), evaluation={"deterministic": False})
    assert modes == [played]


def test_films_of_atari_run_at_the_speed_of_the_console():
    pytest.importorskip("ale_py", reason="needs the extra atari")
    for skip, fps in ((4, 15.0), (1, 60.0)):
        with Stage(as_section(EnvConfig, {"id": "ALE/Pong-v5", "atari": {"frame_skip": skip}}, "env")) as stage:
            assert stage.fps == fps


def test_a_window_is_opened(checkpoint):
    pytest.importorskip("pygame", reason="needs the extra video")
    shown = Command(command, ["evaluate", str(checkpoint), "--render", "human"], SDL_VIDEODRIVER="offscreen")
    code, printed, errors = shown.wait(120)
    assert code == 0, errors
    assert json.loads(printed.splitlines()[-1])["episodes"] == 1


def test_video_must_be_an_mp4(checkpoint, capsys):
    assert command(["evaluate", str(checkpoint), "--video", "out.avi"]) == 2
    assert "expected a name that ends in .mp4" in capsys.readouterr().err


def print_contrast(env_id: str) -> None:
    with Stage(EnvConfig(env_id)) as stage:
        print(stage.picture().std())


def test_mujoco_is_drawn_without_a_display(monkeypatch):
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    code, printed, errors = Command(print_contrast, "HalfCheetah-v5").wait(120)
    if code and "cannot be rendered" in errors:
        assert "MUJOCO_GL" in errors
        pytest.skip("neither EGL nor OSMesa works here")
    assert float(printed) > 10, errors  # a picture, not a blank


# the callback


def test_videos_are_recorded_every_k_epochs(tmp_path):
    pytest.importorskip("pygame", reason="needs the extra video")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, RecordVideo(every_n_epochs=2), epochs=5, logger=logger)
    # two rollouts of 128 rows an epoch pair, less the rows that only reset CartPole
    steps = [int(p.stem.removeprefix("step_")) for p in sorted((tmp_path / "videos").glob("step_*.mp4"))]
    assert len(steps) == 2 and 240 < steps[0] <= 256 < steps[1] <= 512
    logger.finalize("success")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    animations = events.Images("video")
    assert [e.step for e in animations] == steps
    assert all(e.encoded_image_string.startswith(b"GIF89a") and (e.width, e.height) == (200, 134) for e in animations)


def test_filming_changes_no_weight(tmp_path):
    pytest.importorskip("pygame", reason="needs the extra video")
    filmed, plain = (
        fit(tmp_path, *callbacks, epochs=3).lightning_module.state_dict() for callbacks in ([RecordVideo(1)], [])
    )
    assert filmed.keys() == plain.keys()
    assert all(torch.equal(filmed[name], plain[name]) for name in plain)


def test_an_environment_built_in_python_cannot_be_filmed(tmp_path):
    import gymnasium

    data = RolloutDataModule(gymnasium.make_vec("CartPole-v1", 2), num_steps=32)
    model = PPO(data.observation_space, data.action_space)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[RecordVideo()], logger=False, default_root_dir=tmp_path
    )
    with pytest.raises(ConfigError, match="RecordVideo: needs a RolloutDataModule whose env is an id"):
        trainer.fit(model, data)


@pytest.mark.parametrize("arguments", [{"every_n_epochs": 0}, {"episodes": 0}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match="must be at least 1"):
        RecordVideo(**arguments)
