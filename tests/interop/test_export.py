"""Exported agents act as the checkpoint does, whatever the spaces, with masks and memory, in any batch size."""

import json
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.cli import main as command
from lightning_ppo.interop.export import EXPORTERS, Deployed, export, greatest_difference
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import UserError
from tests.kit.export_matrix import check
from tests.kit.memory import TRANSFORMER

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
CASES = {
    "vector": (BOX, spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 1.0])), {"layer_norm": True}, False),
    "masked": (spaces.Dict(a=BOX, b=spaces.Discrete(4, start=2)), spaces.MultiDiscrete([2, 3]), {}, True),
    "memory": (BOX, spaces.Box(-2.0, 2.0, (2,), np.float32), {"core": "lstm", "core_size": 8}, False),
    "attention": (BOX, spaces.Box(-2.0, 2.0, (2,), np.float32), TRANSFORMER, False),
}


def make(case: str, seed: int = 0) -> Deployed:
    """Return a policy whose statistics matter and whose actions depend on what it sees."""
    observation_space, action_space, settings, masks = CASES[case]
    torch.manual_seed(seed)
    settings = PolicyConfig(hidden_sizes=[16], **settings)
    policy = ActorCritic(observation_space, action_space, settings, NormalizeConfig())
    for normalizer in policy.inputs.normalizers.values():
        normalizer.update(0.3 + 0.2 * torch.randn(100, 3))
    with torch.no_grad():
        policy.network.actor_output.weight.mul_(100.0)
    return Deployed(policy, observation_space, action_space, masks)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *(pytest.param(case, "torch", marks=[pytest.mark.compiled] * (case == "attention")) for case in CASES),
        *(pytest.param(case, "onnx", marks=pytest.mark.compiled) for case in ("memory", "attention")),
    ],
)
def test_a_thousand_observations(case, kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra export")
        pytest.importorskip("onnxscript", reason="needs the extra export")
    deployed = make(case)
    function = export(deployed, tmp_path / f"agent{EXPORTERS.load(kind).ending}", kind)
    # 100 steps of 10 environments, memory carried along
    assert greatest_difference(deployed, function) <= 1e-5
    # and another agent would be told apart
    assert greatest_difference(make(case, seed=1), function, steps=3) > 0.1
    for rows in (1, 17):
        inputs = deployed.sample(rows, np.random.default_rng(3))
        with torch.no_grad():
            expected = deployed.named(inputs)
        torch.testing.assert_close(function(inputs), expected, atol=1e-5, rtol=1e-5)


KINDS = [
    ("image", "discrete", None, True, "torch"),
    ("tuple", "mixed gsde", "gru", True, "torch"),
    ("dict", "mixed tanh_gaussian", "lstm", True, "torch"),
    pytest.param("nested", "mixed beta", "gru", True, "onnx", marks=pytest.mark.compiled),
    pytest.param("dict", "mixed state_gaussian", "lstm", False, "onnx", marks=pytest.mark.compiled),
    pytest.param("dict", "mixed gsde", "transformer", True, "onnx", marks=pytest.mark.compiled),
]
"""Every kind of observation and action is in some case; `export_matrix.py`, which takes a while, has every pair."""


@pytest.mark.parametrize(("observation", "action", "core", "masked", "kind"), KINDS)
def test_every_kind(observation, action, core, masked, kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra export")
        pytest.importorskip("onnxscript", reason="needs the extra export")
    check(observation, action, core, masked, kind, tmp_path)


def test_masks_forbid(tmp_path):
    deployed = make("masked")
    function = export(deployed, tmp_path / "agent.pt2", "torch")
    inputs = deployed.sample(50, np.random.default_rng(0))
    assert len(set(function(inputs)["actions"][:, 1].tolist())) > 1
    inputs["action_masks"][:, 3:] = False  # of three choices of the second component only the first is left
    assert set(function(inputs)["actions"][:, 1].tolist()) == {0}


def test_an_episode_that_starts_forgets(tmp_path):
    deployed = make("memory")
    function = export(deployed, tmp_path / "agent.pt2", "torch")
    inputs = deployed.sample(2, np.random.default_rng(0))
    inputs["observations"][1] = inputs["observations"][0]
    inputs["states"] = torch.randn_like(inputs["states"])
    inputs["starts"] = torch.tensor([True, True])
    actions = function(inputs)["actions"]
    torch.testing.assert_close(actions[0], actions[1])
    inputs["starts"] = torch.tensor([False, False])
    assert (function(inputs)["actions"][0] - actions[0]).abs().max() > 1e-3


def test_masks_need_choices():
    with pytest.raises(UserError, match="no choices that a mask could forbid"):
        Deployed(make("vector").policy, BOX, CASES["vector"][1], action_masks=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pl.seed_everything(1, verbose=False)
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=32, rollouts_per_epoch=1, seed=1)
    model = PPO(data.observation_space, data.action_space)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / "agent.ckpt")
    return folder / "agent.ckpt"


@pytest.mark.compiled
def test_onnx_runs_without_this_package(checkpoint, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    pytest.importorskip("onnxscript", reason="needs the extra export")
    assert command(["export", str(checkpoint)]) == 0
    target = checkpoint.with_suffix(".onnx")
    printed = capsys.readouterr().out
    assert f"{target}: observations -> actions" in printed and "on 1,000 random observations: 0\n" in printed
    observations = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    np.save(tmp_path / "observations.npy", observations)
    code = (
        "import json, sys, numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(target)!r})\n"
        f"observations = numpy.load({str(tmp_path / 'observations.npy')!r})\n"
        "print(json.dumps(session.run(['actions'], {'observations': observations})[0].tolist()))\n"
        "assert not {'torch', 'lightning_ppo'} & set(sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    policy = PPO.load_from_checkpoint(checkpoint, weights_only=True).policy
    expected = policy.predict(torch.from_numpy(observations))[0].tolist()
    assert json.loads(finished.stdout) == expected and 100 < sum(expected) < 900


def test_mistakes_are_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    assert command(["export", str(checkpoint), "--format", "torch", "--output", str(tmp_path / "agent.onnx")]) == 2
    assert "--output: expected a name that ends in .pt2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert command(["export", str(checkpoint)]) == 1
    error = capsys.readouterr().err
    assert "ONNX needs onnxruntime: pip install 'lightning-ppo[export]'" in error and error.count("\n") == 1


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_difference_in_any_step_and_output_counts(wrong):
    deployed, calls = make("memory"), 0

    def function(inputs):
        nonlocal calls
        calls += 1
        found = deployed.named(inputs)
        name = deployed.outputs[wrong]
        return found | {name: found[name] + (0.5 if calls == 1 else 0.0)}

    assert greatest_difference(deployed, function, steps=2) >= 0.5
