"""First hours of five people with the installed package, in small, each in a folder of their own outside the clone.

The notebook's is `test_the_notebook_runs_in_a_kernel` in tests/project/test_examples.py.
"""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.kit.commands import rows
from tests.kit.pages import BUDGET, ELSEWHERE, blocks_of, commands_of
from tests.kit.paths import ROOT
from tests.kit.wheel import TINY, archives, installed

pytestmark = pytest.mark.docs
__all__ = ["archives", "installed"]  # fixtures

ARM = '''
import gymnasium
import numpy as np
from gymnasium import spaces


class Arm(gymnasium.Env):
    """A joint that is to reach an angle."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, gain=0.3, render_mode=None):
        self.observation_space = spaces.Box(-np.pi, np.pi, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.gain, self.render_mode = gain, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.angle, self.goal = self.np_random.uniform(-1.0, 1.0, 2)
        self.steps = 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.angle, self.goal], np.float32)

    def step(self, action):
        self.steps += 1
        self.angle = float(np.clip(self.angle + self.gain * float(action[0]), -np.pi, np.pi))
        reach, effort = -abs(self.angle - self.goal), -0.01 * float(action[0]) ** 2
        truncated = self.steps == 20
        info = {"reach": reach, "effort": effort, "is_success": reach > -0.1}
        return self.observe(), reach + effort, False, truncated, info

    def render(self):
        picture = np.zeros((64, 64, 3), np.uint8)
        for angle, channel in ((self.angle, 0), (self.goal, 1)):
            picture[32 + int(20 * np.sin(angle)) :, 32 + int(20 * np.cos(angle)) :, channel] = 255
        return picture
'''


def summary_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


def test_a_robotics_student_with_an_environment_of_their_own(installed, tmp_path):
    (tmp_path / "arm.py").write_text(ARM)
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for arguments in (["init", "-q"], ["add", "arm.py"], ["commit", "-qm", "arm"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)

    found = installed("check-env", "arm:Arm", "--steps", "60", folder=tmp_path).stdout
    assert "fail" not in found and "is_success" in found

    train = ["train", "env.id=arm:Arm", *TINY, "env.log_info=[reach,effort]"]
    shown = installed(*train, "total_env_steps=128", "run_dir=runs/first", folder=tmp_path).stdout
    summary = summary_of(tmp_path / "runs" / "first")
    assert all(word in shown for word in ("reach", "effort", "success"))
    assert 0.0 <= summary["eval_success_rate"] <= 1.0 and summary["git"]["dirty"] is False
    terms = [summary["info"][name]["eval_per_episode"] for name in ("reach", "effort")]
    assert sum(terms) == pytest.approx(summary["eval_return_mean"])

    more = ["train", "run_dir=runs/first", "resume=last", "total_env_steps=192"]
    installed(*more, folder=tmp_path)
    assert summary_of(tmp_path / "runs" / "first")["env_steps"] == 192

    last = "runs/first/checkpoints/last.ckpt"
    result = json.loads(installed("evaluate", last, "--episodes", "2", folder=tmp_path).stdout)
    assert result["episodes"] == 2 and result["length_mean"] == 20.0
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    installed("evaluate", last, "--episodes", "1", "--video", "arm.mp4", folder=tmp_path)
    assert (tmp_path / "arm.mp4").stat().st_size > 500


ENGINEER = """
import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

import lightning_ppo
from lightning_ppo import PPO, RolloutDataModule


class Encoder(nn.Module):
    def __init__(self, space, width=16):
        super().__init__()
        self.num_features = width
        self.layer = nn.Linear(space.shape[0], width)

    def forward(self, observations):
        return self.layer(observations).tanh()


class Careful(PPO):
    def policy_loss(self, terms):
        return super().policy_loss(terms) + 0.01 * terms.log_ratios.square()


def make(table):
    import gymnasium

    return gymnasium.wrappers.TransformReward(gymnasium.make("CartPole-v1"), lambda reward: reward * table[0])


if __name__ == "__main__":
    data = RolloutDataModule(
        make, num_envs=2, num_steps=16, rollouts_per_epoch=2, env_kwargs={"table": np.array([2.0])}, overlap=True
    )
    model = Careful(
        data.observation_space,
        data.action_space,
        policy={"encoder": Encoder, "hidden_sizes": [16]},
        update={"minibatch_size": 32, "epochs": {"kind": "linear", "start": 3, "end": 1}},
        optimizer={"groups": [{"parameters": "*.encoder.*", "factor": 0.1}]},
        total_env_steps=128,
    )
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint("agent.ckpt")
    loaded = Careful.load_from_checkpoint("agent.ckpt")
    observations = np.zeros((5, 4), np.float32)
    actions, _ = loaded.predict(observations)
    assert actions.shape == (5,) and (actions == model.predict(observations)[0]).all()

    summary = lightning_ppo.train({
        "env": {"id": make, "kwargs": {"table": np.array([2.0])}, "num_envs": 2},
        "policy": {"encoder": {"class_path": Encoder, "init_args": {"width": 8}}},
        "rollout.num_steps": 16, "update.minibatch_size": 32, "total_env_steps": 64, "run_dir": "run",
        "evaluation": {"episodes": 0, "final_episodes": 1},
    })
    print("steps", summary["env_steps"])
"""


def test_a_research_engineer_in_python(installed, tmp_path):
    (tmp_path / "research.py").write_text(ENGINEER)
    shown = installed.run("python", "research.py", folder=tmp_path).stdout
    assert "steps 6" in shown
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert "id: __main__:make" in written and "table: <ndarray from Python>" in written
    assert "class_path: __main__.Encoder" in written


def test_a_cluster_user_whose_job_is_put_back_into_the_queue(installed, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queue.txt\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    job = {"SLURM_JOB_ID": "4242", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
    job |= {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    train = ["train", "cartpole", *TINY[:-1], "run_dir=run", "resume=auto", "total_env_steps=2560"]
    process = installed.start("lightning-ppo", *train, folder=tmp_path, **job)
    try:
        metrics = tmp_path / "run" / "metrics.csv"
        deadline = time.monotonic() + 150
        while not (metrics.is_file() and len(rows(metrics)) > 3) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)  # what the scheduler sends before it takes the machine
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 143, err[-1000:]
    assert (tmp_path / "queue.txt").read_text() == "requeue 4242\n"
    assert "\r" not in out + err and "was requeued" in out + err

    # the scheduler starts the same script again
    installed.run("lightning-ppo", *train, folder=tmp_path, **job)
    summary, steps = summary_of(tmp_path / "run"), [float(row["step"]) for row in rows(metrics)]
    assert 2400 < summary["env_steps"] <= 2560
    assert steps == sorted(steps) and steps[-1] == summary["env_steps"]  # one curve, without a gap or a step twice


@pytest.mark.parametrize("page", ["README.md", "docs/get_started.md"])
def test_a_reader_who_types_what_the_page_says(page, installed, tmp_path):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_env.py").write_text(
        "from gymnasium.envs.classic_control import CartPoleEnv as MyEnv\n"
    )
    trained = 0
    for block in blocks_of(ROOT / page):
        if block.language == "yaml" and block.file_name:
            (tmp_path / block.file_name).write_text(block.text)
        if block.language == "python":
            source = re.sub(r"max_epochs=\d+", "max_epochs=1", block.text)
            source = re.sub(r'total_env_steps(["=:]+ ?)[\d_]+', r"total_env_steps\g<1>5000", source)
            installed.run("python", "-c", source, folder=tmp_path, SDL_VIDEODRIVER="dummy")
        for words in commands_of(block) if block.language == "bash" else ():
            if words[0] in ELSEWHERE or words[0] != "lightning-ppo":
                continue
            arguments = words[1:]
            if arguments[0] == "train":
                resumed = any(word.startswith("resume=") for word in arguments)
                own = any(word.startswith("run_dir=") for word in arguments)
                if own and not any(word.startswith("trainer.") for word in arguments):
                    trained += not resumed
                    arguments += [*([] if resumed else TINY), BUDGET]
                elif "--help" not in arguments:
                    arguments.append("--print-config")  # the settings are read
            elif arguments[0] == "evaluate":
                if "--render" in arguments:
                    continue
                arguments += ["--episodes", "1"]
            elif arguments[0] not in ("report", "configs", "doctor"):
                continue
            installed(*arguments, folder=tmp_path)
    assert trained
