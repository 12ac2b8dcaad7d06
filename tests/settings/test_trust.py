"""Files that are well-formed and hostile: nothing that they name is imported or called, whatever reads them."""

import copy
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.cli import main as command
from lightning_ppo.cli import train
from lightning_ppo.run.callbacks import Timing
from lightning_ppo.settings import trust
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import as_section, load_over
from lightning_ppo.settings.trust import check_names
from lightning_ppo.support.errors import CheckpointError, ConfigError, EnvironmentFault
from lightning_ppo.support.signature import key_path
from tests.kit.envs import Count, make_vector_env
from tests.kit.paths import ROOT

SMALL = ["env.num_envs=2", "rollout.num_steps=8", "update.minibatch_size=16", "total_env_steps=32"]
SMALL += ["rollouts_per_epoch=1", "evaluation.episodes=0", "evaluation.final_episodes=0"]
SMALL += ["trainer.enable_progress_bar=false"]

CANARY = """
from pathlib import Path
Path({path!r}).write_text("imported")

import gymnasium, torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from lightning_ppo.policy.distributions import GaussianHead
from lightning_ppo.update.loss_terms import LossTerm
from lightning_ppo.update.policy_objectives import Clip

class Env(gymnasium.Env): pass
class Wrapper(gymnasium.Wrapper): pass
class Module(torch.nn.Module): pass
class Call(Callback): pass
class Log(CSVLogger): pass
class Term(LossTerm): pass
class Objective(Clip): pass
class Head(GaussianHead): pass
class Optimizer(torch.optim.SGD): pass
class Scheduler(torch.optim.lr_scheduler.StepLR): pass
"""


class Own(Count):
    """An environment of the user's own, with memory enough for an encoder's argument."""

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array", "human"]}

    def __init__(self, render_mode=None, note="", **kwargs):
        super().__init__(**kwargs)
        self.render_mode, self.note = render_mode, note

    def render(self):
        """Return a picture."""
        return np.zeros((16, 16, 3), np.uint8)


def make_env(**kwargs):
    """Return an environment, as a function that a user names."""
    return Own(**kwargs)


class Features(nn.Module):
    """An encoder of the user's own."""

    num_features = 1

    def __init__(self, space, note=""):
        super().__init__()

    def forward(self, observations):
        """Return what is seen."""
        return observations


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The content of a checkpoint that any file could have."""
    run_dir = tmp_path_factory.mktemp("honest") / "run"
    assert train.main([*SMALL, "env.id=CartPole-v1", f"run_dir={run_dir}"]) == 0
    content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["ppo"]["signature"] == ""  # nothing of it needs one
    return content


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that exists once anything ran; a module, a resolver and a registered environment that would write it."""
    path = tmp_path / "sang"
    (tmp_path / "canary.py").write_text(CANARY.format(path=str(path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    register("canary", lambda *_: path.write_text("resolved"))
    gymnasium.register("Canary-v0", entry_point="canary:Env")
    monkeypatch.setattr(np.random, "canary", lambda: path.write_text("called"), raising=False)
    yield path
    OmegaConf.clear_resolver("canary")
    del gymnasium.registry["Canary-v0"]
    sys.modules.pop("canary", None)


def at(*keys, value):
    """Return a change of a checkpoint: the value at nested keys."""

    def change(content):
        for key in keys[:-1]:
            content = content.setdefault(key, {})
        content[keys[-1]] = value

    return change


TOUCH = {"id": "subprocess:Popen", "kwargs": {"args": ["touch", "sang"]}}
DATA, MODULE, CONFIG = "datamodule_hyper_parameters", "hyper_parameters", "config"
ENVIRONMENTS = {
    "command": TOUCH,
    "class": {"id": "canary:Env"},
    "registered": {"id": "Canary-v0"},
    "registered, module named": {"id": "gymnasium:Canary-v0"},
    "function": {"id": "gymnasium:make", "kwargs": {"id": "canary"}},
    "function of ours": {"id": "lightning_ppo.envs:make_vector_env", "kwargs": {"env_id": "canary"}},
    "import in arguments": {"id": "CartPole-v1", "kwargs": {"id": "canary:Env"}},
    "path in arguments": {"id": "HalfCheetah-v5", "kwargs": {"xml_file": "/tmp/x/model.xml"}},
    "method": {"id": "CartPole-v1", "action_mask": "method:close"},
    "pool": {"id": "Pong-v5", "backend": "envpool", "kwargs": {"vzd_path": "sang"}},
    "pool that is shown": {"id": "canary:Env", "backend": "envpool"},
    "wrapper": {"id": "CartPole-v1", "wrappers": ["canary.Wrapper"]},
    "wrapper with arguments": {"id": "CartPole-v1", "wrappers": [{"class_path": "canary.Wrapper"}]},
    "no wrapper": {"id": "CartPole-v1", "wrappers": [{"class_path": "subprocess.Popen", "init_args": TOUCH["kwargs"]}]},
    "files": {
        "id": "CartPole-v1",
        "wrappers": [{"class_path": "gymnasium.wrappers.RecordVideo", "init_args": {"video_folder": "sang"}}],
    },
}
NETWORKS = {
    name: {"policy": {name: value}}
    for name, value in [("network", "canary.Module"), ("encoder", {"class_path": "canary.Module"})]
} | {
    "core": {"policy": {"core": "canary.Module"}},
    "nested names": {
        "policy": {
            "network": {"class_path": "lightning_ppo.update.ppo.PPO", "init_args": {"objective": "canary.Objective"}}
        }
    },
    "policy as text": {"policy": "encoder: canary.Module"},
    "objective": {"objective": "canary.Objective"},
    "objective with arguments": {"objective": {"class_path": "canary.Objective", "init_args": {}}},
    "no objective": {"objective": "subprocess.Popen"},
    "distribution": {"policy": {"distribution": "canary.Head"}},
    "distribution with arguments": {"policy": {"distribution": {"class_path": "canary.Head", "init_args": {}}}},
    "no distribution": {"policy": {"distribution": {"class_path": "subprocess.Popen", "init_args": TOUCH["kwargs"]}}},
    "optimizer": {"optimizer": {"class_path": "canary.Optimizer"}},
    "no optimizer": {"optimizer": {"class_path": "subprocess.Popen", "init_args": TOUCH["kwargs"]}},
    "optimizer with a path": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"foreach": "/tmp/x"}}},
    "optimizer as text": {"optimizer": "canary.Optimizer"},
    "scheduler": {"optimizer": {"scheduler": "canary.Scheduler", "learning_rate": 0.1}},
    "scheduler with arguments": {
        "optimizer": {"scheduler": {"class_path": "canary.Scheduler", "init_args": {}, "interval": "epoch"}}
    },
    "loss term": {"loss_terms": ["canary.Term"]},
    "loss term with arguments": {"loss_terms": [{"class_path": "canary.Term", "weight": 0.0}]},
    "an object": {"objective": torch.Size},
    "a function": {"policy": {"encoder": torch.float32}},
    "loss terms as a mapping": {"loss_terms": {"canary.Term": 1}},
}
HOSTILE = {
    f"{section} {name}": at(section, "env", value=value)
    for section in (DATA, CONFIG)
    for name, value in ENVIRONMENTS.items()
}
HOSTILE |= {
    f"{section} {name}": at(section, *value, value=next(iter(value.values())))
    for section in (MODULE, CONFIG, "hparams")
    for name, value in NETWORKS.items()
}
HOSTILE |= {
    "module_arguments": at("module_arguments", "policy", value={"encoder": "canary.Module"}),
    "env as text": at(DATA, "env", value="canary:Env"),
    "env_kwargs": at(DATA, "env_kwargs", value={"id": "canary:Env"}),
    "name of the arguments": at("datamodule_hparams_name", value="env"),
    "instantiator": at(MODULE, "_instantiator", value="pytorch_lightning.cli.instantiate_module"),
    "instantiator of data": at(DATA, "_instantiator", value="canary.Env"),
    "no settings": at(DATA, value=["canary:Env"]),
    "callback": at(CONFIG, "callbacks", value=["canary.Call"]),
    "callback as text": at(CONFIG, "callbacks", value="canary.Call"),
    "callback that writes": at(
        CONFIG,
        "callbacks",
        value=[{"class_path": "lightning_ppo.run.checkpointing.LastCheckpoint", "init_args": {"path": "sang"}}],
    ),
    "callback with a path": at(
        CONFIG,
        "callbacks",
        value=[{"class_path": "lightning_ppo.run.recording.RecordVideo", "init_args": {"directory": "sang"}}],
    ),
    "no callback": at(CONFIG, "callbacks", value=[{"class_path": "subprocess.Popen", "init_args": TOUCH["kwargs"]}]),
    "logger": at(CONFIG, "loggers", value=["canary.Log"]),
    "logger that writes": at(
        CONFIG,
        "loggers",
        value=[{"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "sang"}}],
    ),
    "logger that sends": at(
        CONFIG, "loggers", value=[{"class_path": "mlflow", "init_args": {"tracking_uri": "http://localhost:1"}}]
    ),
    "root": at(CONFIG, "trainer", "default_root_dir", value="sang"),
    "plugins": at(CONFIG, "trainer", "plugins", value=["canary.Call"]),
    "profiler": at(CONFIG, "trainer", "profiler", value="advanced"),
}


ENTRIES = ["evaluate", "video", "window", "export", "resume", "module", "data"]


def read(entry: str, path: Path, trust=()) -> str:
    """Let an entry read a checkpoint and return what it says against it, nothing if it takes it."""
    options = [word for name in trust for word in ("--trust", name)]
    commands = {
        "evaluate": ["evaluate", str(path), "--episodes", "1"],
        "video": ["evaluate", str(path), "--video", str(path.parent / "x.mp4")],
        "window": ["evaluate", str(path), "--render", "human"],
        "export": ["export", str(path), "--format", "torch"],
    }
    if entry in commands:
        return "" if command([*commands[entry], *options]) == 0 else "failed"
    if entry == "resume":
        arguments = [f"resume={path}", f"run_dir={path.parent / 'resumed'}", "total_env_steps=48"]
        return "" if train.main([*arguments, *options]) == 0 else "failed"
    try:
        if entry == "module":
            PPO.load_from_checkpoint(path, trust=trust)
        else:
            RolloutDataModule.load_from_checkpoint(path, trust=trust).env.close()
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.exhaustive
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_nothing_that_a_file_names_is_imported_or_called(change, entry, reference, canary, tmp_path, capsys):
    content = copy.deepcopy(reference)
    change(content)
    hostile = tmp_path / "hostile" / "last.ckpt"
    hostile.parent.mkdir()
    torch.save(content, hostile)
    said = read(entry, hostile)
    printed = capsys.readouterr().err
    said = printed if said == "failed" else said
    assert str(hostile) in said and said.strip().count("\n") == 0, said
    assert not canary.exists() and "canary" not in sys.modules
    assert not (hostile.parent / "resumed").exists()


# what is the user's own stays convenient


OWN = [
    "env.id=tests.settings.test_trust:Own",
    "env.kwargs.note=/a/path.xml",
    "policy.encoder=tests.settings.test_trust.Features",
]
OWN += ["callbacks=[tests.settings.test_trust.Quiet]"]


class Quiet(pl.Callback):
    """A callback of the user's own."""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A checkpoint that names classes of the user's own, trained here."""
    run_dir = tmp_path_factory.mktemp("own") / "run"
    assert train.main([*SMALL, *OWN, f"run_dir={run_dir}"]) == 0
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another machine, on which the user has another key, or none."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


READING = [entry for entry in ENTRIES if entry != "window"]


@pytest.mark.parametrize("entry", READING)
def test_files_of_ones_own_need_no_word(entry, own, tmp_path):
    assert key_path().stat().st_mode & 0o077 == 0
    copied = tmp_path / "last.ckpt"
    copied.write_bytes(own.read_bytes())
    assert read(entry, copied) == ""


@pytest.mark.parametrize("entry", READING)
def test_elsewhere_their_names_are_trusted_by_package(entry, own, elsewhere, tmp_path, capsys):
    copied = tmp_path / "last.ckpt"
    copied.write_bytes(own.read_bytes())
    said = read(entry, copied, trust=["testing"]) + capsys.readouterr().err
    assert "names tests.settings.test_trust" in said and "add --trust tests" in said
    assert read(entry, copied, trust=["tests"]) == ""
    assert not key_path().exists() or entry == "resume"  # only what is saved is signed


def test_a_signature_is_one_of_names_and_arguments(own, tmp_path):
    content = torch.load(own, weights_only=True)
    check_names(content, "file")
    changed = copy.deepcopy(content)
    changed[DATA]["env"]["kwargs"]["note"] = "/another/path.xml"
    with pytest.raises(CheckpointError, match=r"^file: .*tests.settings.test_trust"):
        check_names(changed, "file")
    changed = copy.deepcopy(content)
    changed[CONFIG]["loggers"] = ["canary.Log"]
    with pytest.raises(CheckpointError):
        check_names(changed, "file")
    changed = copy.deepcopy(content)
    changed["state_dict"] = {}
    check_names(changed, "file")


def test_a_function_is_called_only_if_it_is_named_whole(elsewhere):
    content = {DATA: {"env": {"id": "tests.settings.test_trust:make_env", "kwargs": {"note": "a/b"}}}}
    with pytest.raises(CheckpointError, match=r"no class of environments.*--trust tests.settings.test_trust:make_env"):
        check_names(content, "file", ["tests"])
    check_names(content, "file", ["tests.settings.test_trust:make_env"])
    check_names({DATA: {"env": {"id": "tests.settings.test_trust:Own"}}}, "file", "tests")


def test_what_the_command_line_names_needs_no_trust(own, elsewhere, tmp_path):
    arguments = [f"resume={own}", f"run_dir={tmp_path / 'run'}", "total_env_steps=48"]
    assert train.main(arguments) == 1
    assert train.main([*arguments, *OWN[:-1]]) == 1  # the callback is still the file's
    assert train.main([*arguments, *OWN]) == 0
    assert train.main([*OWN, f"run_dir={tmp_path / 'another'}", "--trust", "tests"]) == 2
    assert train.main([f"resume={own}", "--trust"]) == 2


def test_settings_given_in_python_replace_those_of_the_file(reference, canary, tmp_path):
    content = copy.deepcopy(reference)
    content[MODULE]["loss_terms"] = ["canary.Term"]
    content[DATA]["env"] = TOUCH
    del content[CONFIG]
    torch.save(content, tmp_path / "agent.ckpt")
    for give in ({}, {"loss_terms": ()}, {"env": "CartPole-v1"}):
        with pytest.raises(CheckpointError):
            PPO.load_from_checkpoint(tmp_path / "agent.ckpt", **give)
    content[DATA]["env"] = "CartPole-v1"
    torch.save(content, tmp_path / "agent.ckpt")
    assert not PPO.load_from_checkpoint(tmp_path / "agent.ckpt", loss_terms=()).loss_terms
    assert not canary.exists()


def test_open_files_are_looked_at_too(reference, canary):
    for objective in ("clip", "canary.Objective"):
        file = io.BytesIO()
        torch.save({**reference, MODULE: {**reference[MODULE], "objective": objective}}, file)
        file.seek(0)
        if objective == "clip":
            assert PPO.load_from_checkpoint(file).env_steps == 32 - 1  # one row was filler
        else:
            with pytest.raises(CheckpointError, match=r"objective names canary\.Objective"):
                PPO.load_from_checkpoint(file)
    with pytest.raises(TypeError, match="cannot be called on an instance"):  # which would stay as it is
        RolloutDataModule().load_from_checkpoint(file)
    with pytest.raises(ConfigError, match="hparams_file"):
        PPO.load_from_checkpoint(file, hparams_file="hparams.yaml")
    assert not canary.exists()


def test_what_comes_along_may_be_named_by_any_file(elsewhere):
    env = {
        "id": "FrozenLake-v1",
        "kwargs": {"map_name": "8x8", "is_slippery": False, "desc": None},
        "wrappers": [
            {"class_path": "gymnasium.wrappers.FrameStackObservation", "init_args": {"stack_size": 2}},
            {"class_path": "gymnasium.wrappers.TimeLimit", "init_args": {"max_episode_steps": 5}},
        ],
    }
    config = {
        "objective": "lightning_ppo.update.policy_objectives.Clip",
        "policy": {"core": "lstm", "encoder": "impala", "network": None, "distribution": "state_gaussian"},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"weight_decay": 0.01, "betas": [0.9, 0.99]},
            "scheduler": {"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau", "init_args": {"mode": "max"}},
        },
        "loss_terms": [
            {"class_path": "lightning_ppo.update.loss_terms.DualClip", "init_args": {"bound": 3.0}, "weight": 0.1}
        ],
        "callbacks": [
            {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "eval/return_mean"}},
            "lightning_ppo.run.recording.RecordVideo",
        ],
        "loggers": ["wandb"],
        "trainer": {"precision": "bf16-mixed", "devices": 1, "max_time": "00:01:00:00", "logger": False},
    }
    check_names({DATA: {"env": env}, CONFIG: {**config, "env": env}, MODULE: config}, "file")
    for name in ("lightning_ppo.envs.torch_envs:CartPole", "gymnasium:CartPole-v1", "Hopper-v3", "NoSuch-v0"):
        check_names({DATA: {"env": {"id": name}}}, "file")


def test_names_with_control_characters_are_shown_as_text(elsewhere):
    for name in ("canary\x1b[2J:Env", "canary\n:Env"):
        with pytest.raises(CheckpointError, match="names canary") as caught:
            check_names({DATA: {"env": {"id": name}}}, "file")
        assert str(caught.value).isprintable()


def test_a_known_name_that_lies_in_the_current_directory_is_another(canary, monkeypatch):
    monkeypatch.setattr(trust, "ENVIRONMENTS", ("canary",))
    with pytest.raises(CheckpointError, match="canary is none of the installed packages"):
        check_names({DATA: {"env": {"id": "canary:Env"}}}, "file")
    assert not canary.exists()


def test_without_a_place_for_the_key_training_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.warns(UserWarning, match="checkpoints are not signed"):
        assert train.main([*SMALL, *OWN, f"run_dir={tmp_path / 'run'}"]) == 0
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["ppo"]["signature"] == ""


# the places where names are used


@pytest.mark.parametrize("env_id", ["subprocess:Popen", "canary:Module", "pathlib:Path"])
def test_a_class_of_another_kind_is_not_called(env_id, canary):
    with pytest.raises(EnvironmentFault, match=r"neither a gymnasium\.Env nor"):
        make_vector_env(env_id, 1, kwargs={"args": ["touch", "sang"]})
    assert not canary.exists() or canary.read_text() == "imported"  # the user has named it himself


def test_values_that_are_saved_are_no_expressions(reference, canary, tmp_path):
    for text in ("${canary:1}", "a\\${canary:1}", "${oc.env:HOME}", "${"):
        assert as_section(EnvConfig, {"kwargs": {"note": text}}, "env").kwargs == {"note": text}
        assert load_over({"env": {"kwargs": {"note": text}}}).env.kwargs == {"note": text}
    content = copy.deepcopy(reference)
    content[MODULE]["policy"]["activation"] = content[CONFIG]["policy"]["activation"] = "${canary:1}"
    content[CONFIG]["run_dir"] = content[DATA]["env"]["action_mask"] = "${canary:1}"
    torch.save(content, tmp_path / "last.ckpt")
    for entry in ENTRIES:
        if entry in ("module", "data"):
            with pytest.raises(ConfigError):
                read(entry, tmp_path / "last.ckpt")
        else:
            assert read(entry, tmp_path / "last.ckpt") == "failed"
    assert not canary.exists()


def replaced(tree, old: str, new: str):
    """Return nested data with one text in place of another wherever it stands."""
    if isinstance(tree, dict):
        return {key: replaced(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(replaced(value, old, new) for value in tree)
    return tree.replace(old, new) if isinstance(tree, str) else tree


def test_the_state_of_an_environment_names_only_random_generators(own, canary, tmp_path, capsys):
    honest = torch.load(own, weights_only=True)
    content = replaced(honest, "PCG64", "canary")
    assert str(content) != str(honest)
    torch.save(content, tmp_path / "last.ckpt")
    arguments = [f"resume={tmp_path / 'last.ckpt'}", f"run_dir={tmp_path / 'run'}", "total_env_steps=48"]
    assert train.main(arguments) in (0, 1)  # whether episodes restart or the run ends
    assert "Traceback" not in capsys.readouterr().err
    assert not canary.exists()


def test_the_state_of_a_callback_replaces_no_methods():
    timing = Timing()
    timing.load_state_dict({**timing.state_dict(), "env_steps": 5, "on_train_batch_end": "nothing"})
    assert timing.env_steps == 5 and callable(timing.on_train_batch_end)


# other files


def test_a_report_shows_what_files_hold_as_text(canary, tmp_path):
    run_dir, trap = tmp_path / "run", "<script>alert(1)</script><img src=x onerror=alert(1)>"
    run_dir.mkdir()
    (run_dir / "metrics.csv").write_text(f"step,{trap},rollout/return_mean\n1,2,3\n2,3,4\n")
    settings = {"env": {"id": trap, "wrappers": ["canary.Wrapper"]}, "seed": 1, trap: trap, "run_dir": "${canary:1}"}
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    numbers = {"env_steps": 2, "fit_seconds": 1.0, "collect_seconds": 1.0, "update_seconds": 1.0}
    (run_dir / "summary.json").write_text(json.dumps({**numbers, "env_id": trap, "versions": {trap: trap}}))
    assert command(["report", str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text()
    assert "<script>alert" not in page and "<img" not in page and "${canary:1}" in page
    assert not canary.exists()
    for tag in ("!!python/object/apply:subprocess.Popen [[touch, sang]]", "!!python/name:canary.Env"):
        (run_dir / "config.yaml").write_text(f"env: {tag}\n")
        assert command(["report", str(run_dir)]) == 1
        assert not canary.exists()


@pytest.mark.parametrize("name", ["n_envs", "target_kl", "ent_coef", "clip_range", "policy_kwargs"])
def test_an_agent_of_sb3_brings_values_alone(name, canary, tmp_path):
    source = ROOT / "tests" / "data" / "sb3_cartpole.zip"
    for value in ("${canary:1}", "canary.Module", {":type:": "canary.Env", ":serialized:": "gASVCg=="}):
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "trap.zip", "w") as new:
            for part in old.namelist():
                data = old.read(part)
                new.writestr(part, json.dumps({**json.loads(data), name: value}) if part == "data" else data)
        command(["import-sb3", str(tmp_path / "trap.zip"), str(tmp_path / "out.ckpt"), "--env", "CartPole-v1"])
        assert not canary.exists() and "canary" not in sys.modules
