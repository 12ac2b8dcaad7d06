"""`lightning-ppo`: help that a person can read, and the doctor's findings."""

import re
import subprocess
import sys
import tomllib

import pytest

from lightning_ppo.cli import COMMANDS, doctor, main, make_parser, train
from tests.kit.paths import ROOT


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_overview_names_every_command_and_where_the_configs_are(arguments, capsys):
    try:
        assert main(arguments) == 0
    except SystemExit as ended:
        assert ended.code == 0
    text = capsys.readouterr().out
    for command in (train, *COMMANDS):
        assert re.search(rf"^    {command.NAME}\b", text, re.MULTILINE), command.NAME
    assert "python -m lightning_ppo train pendulum" not in text and "train --print-config" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_every_example_is_one_that_its_parser_takes(command):
    parser = make_parser()
    for example, _ in command.EXAMPLES:
        name, *rest = example.split()
        assert name == command.NAME
        assert parser.parse_args([name, *rest]).run is command.run


def test_every_example_of_train_is_one_that_it_takes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 2\n")
    for example, _ in train.EXAMPLES:
        if "resume" not in example:
            assert main([*example.split(), "--print-config"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("called", "name", "train_name"),
    [
        ("/usr/bin/lightning-ppo", "lightning-ppo", "lightning-ppo train"),
        ("/x/lightning_ppo/__main__.py", "python -m lightning_ppo", "python -m lightning_ppo train"),
        ("train.py", "python -m lightning_ppo", "python train.py"),
    ],
)
def test_help_and_hints_name_the_command_as_it_was_called(called, name, train_name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [called])
    assert make_parser().prog == name
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {train_name} [CONFIG") and f"  {train_name} pendulum seed=3 " in text
    assert f"  {name} evaluate RUN_DIR" in text
    assert main(["evaluate"]) == 2
    assert f"see {name} evaluate --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalute", "x.ckpt"], "evalute: unknown command; did you mean evaluate?"),
        (["evaluate"], "the following arguments are required: CKPT; see python -m lightning_ppo evaluate --help"),
        (["evaluate", "x.ckpt", "--episodes", "many"], "argument --episodes: invalid int value: 'many'"),
        (["doctor", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "none.ckpt")]) == 1
    error = capsys.readouterr().err
    assert "none.ckpt: no such checkpoint" in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["train", "--help"], ["train", "sed=3"], ["train", "cartpol"], ["configs"]])
def test_help_lists_and_mistakes_import_nothing_heavy(arguments):
    """A typo is refused at once, not after the seconds in which torch is imported."""
    heavy = "{'torch', 'gymnasium', 'pytorch_lightning'}"
    code = f"import sys; from lightning_ppo.cli import main; main({arguments}); print({heavy} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert finished.stdout.splitlines()[-1] == "set()"


# doctor


def test_doctor_knows_the_extras_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        name: {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}
        for name, requirements in project["optional-dependencies"].items()
        if name != "dev"
    }
    assert doctor.EXTRAS.keys() == declared.keys()
    for name, (packages, *_) in doctor.EXTRAS.items():
        # what Gymnasium's own extras bring has other names
        brought = {"mujoco", "imageio", "pygame-ce", "box2d"} if "gymnasium" in declared[name] else set()
        assert set(packages) - brought <= declared[name], name
    required = {re.split(r"[\[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert required <= set(doctor.REQUIRED)


def test_doctor_tells_what_is_missing_for_what(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installed", lambda package: None if package == "optuna" else "1.2.3")
    assert doctor._extra("search") == (
        "search",
        "missing optuna, for the search for settings in examples/: pip install 'lightning-ppo[search]'",
    )
    assert doctor._extra("benchmark")[1].startswith("ok, for ")


def test_doctor_tries_things_out(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "ENVIRONMENTS", (("CartPole-v1", "classic control"), ("CartPoule-v1", "typo")))
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^  python +{re.escape(sys.version.split()[0])} on ", text, re.MULTILINE)
    environments = text.split("environments\n")[1].split("\n\n")[0].splitlines()
    assert re.search(r"CartPole-v1\) +ok$", environments[0])
    assert re.search(r"CartPoule-v1\) +no: env.id: .*did you mean CartPole-v", environments[1])
