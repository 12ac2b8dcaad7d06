"""Agents of Stable-Baselines3: the same actions and values, the same settings, and training goes on from them.

The agents in tests/data were made by tests/data/make_sb3.py, which also wrote down what they say of 20 observations. Of
agents that see images the file holds no weights: these are formulas of tests/data/images.py.
"""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ppo import PPO
from lightning_ppo.cli import main as command
from lightning_ppo.cli import train
from lightning_ppo.interop.sb3 import read_zip, to_settings
from lightning_ppo.settings.loading import load_over
from lightning_ppo.support.checkpoint_files import read_checkpoint
from tests.data.images import OBSERVATIONS, weights
from tests.kit.paths import DATA

STATISTICS = DATA / "sb3_pendulum_vecnormalize.npz"


def convert(name: str, target: Path, *options: str) -> int:
    return command(["import-sb3", str(DATA / f"sb3_{name}.zip"), str(target), *options])


@pytest.fixture
def cartpole(tmp_path) -> Path:
    assert convert("cartpole", tmp_path / "agent.ckpt", "--env", "CartPole-v1") == 0
    return tmp_path / "agent.ckpt"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cartpole", ["--env", "CartPole-v1"]),
        ("pendulum", ["--env", "Pendulum-v1", "--statistics", str(STATISTICS)]),
    ],
)
def test_actions_and_values_are_those_of_sb3(name, options, tmp_path):
    assert convert(name, tmp_path / "agent.ckpt", *options) == 0
    expected = json.loads((DATA / f"sb3_{name}.json").read_text())
    policy = PPO.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True).policy.eval()
    observations = torch.tensor(expected["observations"])
    with torch.no_grad():
        torch.testing.assert_close(policy.value(observations), torch.tensor(expected["values"]), atol=1e-5, rtol=1e-5)
        actions = policy.predict(observations)[0]
    torch.testing.assert_close(actions, torch.tensor(expected["actions"]), atol=1e-5, rtol=1e-5)
    assert len(set(actions.flatten().tolist())) > 1


def test_samples_have_the_standard_deviation_of_sb3(tmp_path):
    convert("pendulum", tmp_path / "agent.ckpt", "--env", "Pendulum-v1", "--statistics", str(STATISTICS))
    policy = PPO.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True).policy
    with zipfile.ZipFile(DATA / "sb3_pendulum.zip") as file, file.open("policy.pth") as part:
        import io

        theirs = torch.load(io.BytesIO(part.read()), weights_only=True)["log_std"].exp()
    # here torques of -2..2 are -1..1
    assert policy.head.log_std.exp().item() * 2 == pytest.approx(theirs.item())


def test_settings_are_taken_over(cartpole):
    config = load_over(read_checkpoint(cartpole)["config"])
    assert (config.env.id, config.env.num_envs, config.rollout.num_steps) == ("CartPole-v1", 2, 64)
    assert (config.rollout.gamma, config.update.minibatch_size, config.update.epochs) == (0.98, 32, 3)
    assert (config.update.clip_range, config.update.entropy_coefficient) == (0.3, 0.01)
    assert (config.optimizer.learning_rate, config.update.target_kl) == (0.001, 0.05)
    assert config.update.std_decay == 0.0
    assert config.update.value_coefficient == 0.5  # 0.25 of the squared error is 0.5 of half of it
    assert (config.policy.hidden_sizes, config.policy.activation) == ([8, 6], "relu")
    assert not config.normalize.observations and not config.normalize.rewards


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (None, None, []),
        ({"value_schedule": "ConstantSchedule(val=0.4)"}, 0.4, []),
        ({":serialized:": "gAWV"}, None, ["clip_range_vf is a schedule"]),
    ],
)
def test_clipping_of_values_is_taken_over(theirs, ours, told):
    agent = read_zip(DATA / "sb3_cartpole.zip")
    config, notes = to_settings(agent._replace(data=agent.data | {"clip_range_vf": theirs}), "CartPole-v1")
    assert config.update.value_clip_range == ours and config.update.clip_range == 0.3
    assert [note[: len(start)] for note, start in zip(notes, told, strict=True)] == told


def test_training_goes_on_from_it(cartpole, tmp_path, capsys):
    before = read_checkpoint(cartpole)["state_dict"]
    run_dir = tmp_path / "run"
    budget = ["total_env_steps=640", "evaluation.final_episodes=2", "evaluation.episodes=2"]
    assert train.main([f"resume={cartpole}", f"run_dir={run_dir}", *budget]) == 0
    last = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    assert 500 < last["ppo"]["env_steps"] <= 640
    changes = {name: (last["state_dict"][name] - tensor).abs().max().item() for name, tensor in before.items()}
    # five iterations of 3 epochs x 4 minibatches with a step size of 1e-3 move no weight further than about 0.06
    assert all(0.0 < change < 0.1 for name, change in changes.items() if name.endswith("weight")), changes
    assert json.loads((run_dir / "summary.json").read_text())["iterations"] == 5


def test_it_is_evaluated_without_the_zip(cartpole, capsys):
    capsys.readouterr()
    assert command(["evaluate", str(cartpole), "--episodes", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4


def test_statistics_are_those_of_vecnormalize(tmp_path):
    convert("pendulum", tmp_path / "agent.ckpt", "--env", "Pendulum-v1", "--statistics", str(STATISTICS))
    policy = PPO.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True).policy
    with np.load(STATISTICS) as file:
        np.testing.assert_allclose(policy.inputs.normalizers[""].mean, file["obs_mean"])
        np.testing.assert_allclose(policy.inputs.normalizers[""].variance, file["obs_var"])
        rewards = torch.tensor([-3.0, 2.0])
        np.testing.assert_allclose(policy.reward_scaler(rewards), rewards / np.sqrt(file["ret_var"] + 1e-8), rtol=1e-5)


# agents that see images

IMAGES = json.loads((DATA / "sb3_images.json").read_text())


def image_agent(tmp_path: Path, case: str, data: dict | None = None, parameters: dict | None = None) -> Path:
    """Return the zip file of an agent of `CnnPolicy` whose weights are those that SB3 was asked with."""
    expected, path = IMAGES[case], tmp_path / "images.zip"
    state = {
        name: torch.from_numpy(weights(origin, shape)) for name, (origin, shape) in expected["parameters"].items()
    } | (parameters or {})
    torch.save(state, tmp_path / "policy.pth")
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("data", json.dumps(expected["data"] | (data or {})))
        target.write(tmp_path / "policy.pth", "policy.pth")
    return path


def convert_images(source: Path, target: Path) -> int:
    return command(["import-sb3", str(source), str(target), "--env", "tests.data.images:Images"])


@pytest.mark.parametrize(
    ("case", "layers", "shared"),
    [("shared", [], True), ("shared_with_layers", [6], False), ("separate", [], False)],
)
def test_images_give_the_actions_and_values_of_sb3(case, layers, shared, tmp_path, capsys):
    assert convert_images(image_agent(tmp_path, case), tmp_path / "agent.ckpt") == 0
    assert ("each has a copy" in capsys.readouterr().out) == (case == "shared_with_layers")
    settings = load_over(read_checkpoint(tmp_path / "agent.ckpt")["config"]).policy
    assert (settings.hidden_sizes, settings.shared_trunk) == (layers, shared)
    policy = PPO.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True).policy.eval()
    images = torch.from_numpy(OBSERVATIONS)
    with torch.no_grad():
        torch.testing.assert_close(policy.value(images), torch.tensor(IMAGES[case]["values"]), atol=1e-5, rtol=1e-5)
    assert policy.predict(images)[0].tolist() == IMAGES[case]["actions"]
    assert len(set(IMAGES[case]["actions"])) > 1


def test_training_goes_on_from_images(tmp_path, capsys):
    agent, run_dir = tmp_path / "agent.ckpt", tmp_path / "run"
    convert_images(image_agent(tmp_path, "shared", {"n_epochs": 1}), agent)
    budget = ["total_env_steps=256", "evaluation.final_episodes=1", "evaluation.episodes=1"]
    assert train.main([f"resume={agent}", f"run_dir={run_dir}", *budget]) == 0
    before = read_checkpoint(agent)["state_dict"]
    after = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]
    # two iterations of two minibatches with a step size of 3e-4
    changes = {name: (after[name] - tensor).abs().max().item() for name, tensor in before.items()}
    assert all(0.0 < change < 0.01 for name, change in changes.items() if name.endswith("weight")), changes


@pytest.mark.parametrize(
    ("data", "parameters", "message"),
    [
        ({"policy_kwargs": {"normalize_images": False}}, {}, "normalize_images=False"),
        ({}, {"pi_features_extractor.linear.0.weight": torch.zeros(128, 64)}, "features_dim=128"),
        (
            {},
            {"pi_features_extractor.linear.0.weight": torch.zeros(512, 3136)},
            "was it trained in another environment",
        ),
        ({}, {"features_extractor.extractors.image.cnn.0.weight": torch.zeros(1)}, "only agents of MlpPolicy and Cnn"),
    ],
)
def test_what_has_no_counterpart_in_images_is_named(data, parameters, message, tmp_path, capsys):
    assert convert_images(image_agent(tmp_path, "shared", data, parameters), tmp_path / "out.ckpt") == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_images_need_an_environment_that_shows_them(tmp_path, capsys):
    source = image_agent(tmp_path, "shared")
    assert command(["import-sb3", str(source), str(tmp_path / "out.ckpt"), "--env", "CartPole-v1"]) == 1
    assert "it sees images, which the environment does not show" in capsys.readouterr().err


# what cannot be taken over


class Trap:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def altered(tmp_path: Path, data: dict | None = None, parameters: dict | None = None) -> Path:
    """Return a copy of the CartPole agent with some entries changed."""
    path = tmp_path / "altered.zip"
    with zipfile.ZipFile(DATA / "sb3_cartpole.zip") as source, zipfile.ZipFile(path, "w") as target:
        settings = json.loads(source.read("data")) | (data or {})
        target.writestr("data", json.dumps(settings))
        (tmp_path / "policy.pth").write_bytes(source.read("policy.pth"))
        weights = torch.load(tmp_path / "policy.pth", weights_only=True) | (parameters or {})
        torch.save(weights, tmp_path / "policy.pth")
        target.writestr("policy.pth", (tmp_path / "policy.pth").read_bytes())
    return path


@pytest.mark.parametrize(
    ("data", "parameters", "message"),
    [
        ({"use_sde": True}, {}, "gSDE"),
        ({"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.Softsign'>"}}, {}, "Softsign"),
        ({}, {"features_extractor.embedding.weight": torch.zeros(1)}, "only agents of MlpPolicy and CnnPolicy"),
        ({}, {"mlp_extractor.value_net.0.weight": torch.zeros(5, 4)}, "hidden layers of different sizes"),
        ({}, {"mlp_extractor.policy_net.0.weight": torch.zeros(8, 3)}, "was it trained in another environment"),
        ({}, {"log_std": torch.zeros(2)}, "actions are of another kind"),
    ],
)
def test_what_has_no_counterpart_is_named(data, parameters, message, tmp_path, capsys):
    path = altered(tmp_path, data, parameters)
    assert command(["import-sb3", str(path), str(tmp_path / "out.ckpt"), "--env", "CartPole-v1"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.ckpt").exists()


def test_a_schedule_is_not_unpickled_but_noted(tmp_path, capsys):
    path = altered(tmp_path, {"learning_rate": {":serialized:": "gASVZQ==", "value_schedule": "LinearSchedule(...)"}})
    assert command(["import-sb3", str(path), str(tmp_path / "out.ckpt"), "--env", "CartPole-v1"]) == 0
    assert "note: learning_rate is a schedule" in capsys.readouterr().out


def test_no_code_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(Trap()))
    statistics = ["--statistics", str(tmp_path / "vecnormalize.pkl")]
    assert convert("pendulum", tmp_path / "out.ckpt", "--env", "Pendulum-v1", *statistics) == 1
    assert "is a pickle, which could run anything" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "trap.zip", "w") as file:
        file.writestr("data", "{}")
        file.writestr("policy.pth", pickle.dumps(Trap()))
    assert command(["import-sb3", "trap.zip", "out.ckpt", "--env", "CartPole-v1"]) == 1
    assert "not an agent saved by Stable-Baselines3" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "out.ckpt").exists()
