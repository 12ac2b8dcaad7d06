"""What stands beside the code and would rot unnoticed: hooks, the forge's workflow and forms, the citation."""

import re
import tomllib

import pytest
import yaml

import lightning_ppo
from tests.kit.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: str):
    return yaml.safe_load((ROOT / path).read_text())


def test_hooks_run_the_checks_of_ci():
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}  # the versions of constraints.txt
    entries = [hook["entry"] for hook in local["hooks"]]
    for command in ("ruff check", "ruff format", "mypy"):
        assert any(entry.startswith(command) for entry in entries)
        assert re.search(rf"^{command}\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_workflow_tests_every_python_that_the_package_claims():
    job = read(".github/workflows/ci.yml")["jobs"]["test"]
    claimed = [
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in PROJECT["project"]["classifiers"]
    ]
    assert job["strategy"]["matrix"]["python-version"] == [match.group(1) for match in claimed if match]
    assert [step.get("run") for step in job["steps"]][-1] == ".ci/run"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_have_what_the_forge_demands(form):
    content = yaml.safe_load(form.read_text())
    assert content["name"] and content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] in ("checkboxes", "dropdown", "input", "textarea") and field["attributes"]["label"]
    for page in re.findall(r"\bdocs/\w+\.md", form.read_text()):
        assert (ROOT / page).is_file()


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert citation["version"] == lightning_ppo.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:1707.06347" and len(paper["authors"]) == 5


def test_the_changelog_begins_with_the_version_or_what_follows_it():
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    version = re.escape(lightning_ppo.__version__)
    assert re.fullmatch(rf"(?i)unreleased|{version} \((unreleased|\d{{4}}-\d\d-\d\d)\)", first)
