"""`python -m lightning_ppo`: help that a person can read, and the doctor's findings."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lightning_ppo.cli import COMMANDS, doctor, main, make_parser

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_overview_names_every_command_and_where_the_configs_are(arguments, capsys):
    try:
        assert main(arguments) == 0
    except SystemExit as ended:
        assert ended.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^    {command.NAME}\b", text, re.MULTILINE), command.NAME
    assert "lightning_ppo train " in text and "lightning_ppo configs" in text and "--print-config" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_every_example_is_one_that_its_parser_takes(command):
    parser = make_parser()
    for example, _ in command.EXAMPLES:
        name, *rest = example.split()
        assert name == command.NAME
        assert parser.parse_args([name, *rest]).run is command.run


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


def test_help_imports_nothing_heavy():
    code = "import sys; from lightning_ppo.cli import main; main([]); print({'torch', 'gymnasium'} & set(sys.modules))"
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
        brought = {"mujoco", "imageio", "pygame-ce"} if "gymnasium" in declared[name] else set()
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
