"""The walks of docs/architecture.md: what its table says is to be opened is there, and is all there is to open."""

import ast
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions

from lightning_ppo import PPO, cli
from lightning_ppo.cli import train
from lightning_ppo.interop.export import Deployed, export, greatest_difference
from lightning_ppo.policy.distributions import CategoricalHead, CompositeHead, GaussianHead, make_action_head
from lightning_ppo.support.errors import ConfigError, UnsupportedSpaceError
from tests.kit.paths import ROOT
from tests.kit.resuming import same

PACKAGE = ROOT / "lightning_ppo"
TABLE = (ROOT / "docs" / "architecture.md").read_text().partition("## To change something")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| (.+?) \| (.+) \|$", TABLE, re.MULTILINE))

SMALL = ["env.num_envs=2", "rollout.num_steps=16", "update.minibatch_size=16", "update.epochs=2"]
SMALL += ["rollouts_per_epoch=1", "evaluation.episodes=1", "evaluation.final_episodes=1"]
SMALL += ["policy.hidden_sizes=[8]", "policy.core_size=4", "trainer.enable_progress_bar=false"]


def files_of(row: str) -> list[str]:
    folder = (re.findall(r"`([a-z_/]+/)`", ROWS[row]) or [""])[0]
    names = re.findall(r"`([a-z_/]+\.py)`", ROWS[row])
    return [name if "/" in name else folder + name for name in names]


def documented(page: str, name: str) -> str:
    """Return the code block of a page that begins with the name of a file."""
    (block,) = re.findall(rf"^```python\n(# {name}\n.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)
    return block


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty folder whose modules can be named, and a function that writes one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name, text: (tmp_path / name).write_text(text)


@pytest.mark.parametrize("row", [row for row in ROWS if row != "to" and not row.startswith("-")])
def test_what_the_table_names_exists(row):
    for name in files_of(row):
        assert (PACKAGE / name).is_file(), name
    for name, method in re.findall(r"`([a-z_/]+\.py)` \(`(\w+)`\)", ROWS[row]):
        defined = {n.name for n in ast.walk(ast.parse((PACKAGE / name).read_text())) if hasattr(n, "name")}
        assert method in defined, f"{method} in {name}"


@pytest.mark.parametrize(
    ("row", "most"),
    [
        ("change the loss", 2),
        ("change the clipped surrogate", 2),
        ("add an environment backend", 3),
        ("add an action distribution", 1),
        ("find where checkpoints are written", 2),
    ],
)
def test_walks_are_short(row, most):
    assert 0 <= len(files_of(row)) <= most and ROWS[row]


def test_collecting_in_several_processes_is_one_room():
    assert "`collection/`" in ROWS["understand collecting in several processes"]
    started = {path.parent.name for path in PACKAGE.rglob("*.py") if "overlap" in path.stem or "worker" in path.stem}
    assert started == {"collection"}


# the loss


@pytest.mark.parametrize(
    ("arithmetic", "row"),
    [("clipped_surrogate_loss", "change the clipped surrogate"), ("value_loss", "change the loss")],
)
def test_a_loss_is_made_and_used_in_two_files(arithmetic, row):
    used = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(
            isinstance(node, ast.Name | ast.FunctionDef)
            and arithmetic in (getattr(node, "id", ""), getattr(node, "name", ""))
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert used == set(files_of(row))


LOSSES = """
from lightning_ppo.update.loss_terms import LossTerm
from lightning_ppo.update.policy_objectives import Clip, PolicyObjective


class Scaled(Clip):
    def __init__(self, update, factor=1.0):
        super().__init__(update)
        self.factor = factor

    def forward(self, terms, coefficients):
        return self.factor * super().forward(terms, coefficients)


class Zero(PolicyObjective):
    def forward(self, terms, coefficients):
        return 0.0 * terms.log_ratios


class Ones(LossTerm):
    def forward(self, policy, minibatch, now):
        return 0.0 * now.values + 1.0
"""


def test_a_loss_of_ones_own_is_one_file(own, tmp_path):
    own("walk_losses.py", LOSSES)

    def weights(*settings):
        run_dir = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        assert train.main([*SMALL, "total_env_steps=64", f"run_dir={run_dir}", *settings]) == 0
        return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"], run_dir

    clip, _ = weights()
    named, run_dir = weights("objective.class_path=walk_losses.Scaled", "loss_terms=[walk_losses.Ones]")
    assert same(clip, named)
    assert ",1.0," in (run_dir / "metrics.csv").read_text() and "loss/ones" in (run_dir / "metrics.csv").read_text()
    scaled, _ = weights("objective.class_path=walk_losses.Scaled", "objective.init_args.factor=3.0")
    zero, _ = weights("objective=walk_losses.Zero")
    assert not same(clip, scaled) and not same(scaled, zero)


# an action distribution


def test_the_documented_distribution_is_right(own):
    own("laplace.py", documented("spaces.md", "laplace.py"))
    space = spaces.Box(-2.0, 2.0, (3,), np.float32)
    head = make_action_head(space, "laplace.LaplaceHead", log_std_init=-0.5)
    p, q = (head.parameters_of(torch.randn(5, 6)) for _ in range(2))
    ours, theirs = (distributions.Laplace(x[:, :3], x[:, 3:].exp()) for x in (p, q))
    actions = torch.randn(5, 3)
    torch.testing.assert_close(head.log_prob(p, actions), ours.log_prob(actions).sum(-1))
    torch.testing.assert_close(head.entropy(p), ours.entropy().sum(-1))
    torch.testing.assert_close(head.kl(p, q), distributions.kl_divergence(ours, theirs).sum(-1))
    noise = head.noise((100_000,), torch.Generator().manual_seed(0))
    drawn = head.sample(head.parameters_of(torch.zeros(1, 6)), noise)
    assert drawn.std().item() == pytest.approx(np.exp(-0.5), rel=0.01)  # as log_std_init says
    assert drawn.abs().mean().item() == pytest.approx(np.exp(-0.5) / np.sqrt(2.0), rel=0.01)


@pytest.mark.exhaustive(strength=0)
@pytest.mark.parametrize("core", ["null", "lstm"])
def test_a_distribution_is_one_file_that_trains_resumes_evaluates_and_is_exported(core, own, tmp_path):
    own("laplace.py", documented("spaces.md", "laplace.py"))
    settings = [*SMALL, "env.id=Pendulum-v1", "policy.distribution=laplace.LaplaceHead", f"policy.core={core}"]
    settings += ["optimizer.learning_rate=1e-3", "update.std_decay=0"]  # which do not depend on the budget
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    assert train.main([*settings, "total_env_steps=128", f"run_dir={straight}"]) == 0
    assert train.main([*settings, "total_env_steps=64", f"run_dir={halted}"]) == 0
    assert train.main([f"run_dir={halted}", "resume=last", "total_env_steps=128"]) == 0
    checkpoint = straight / "checkpoints" / "last.ckpt"
    whole, resumed = (
        torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run_dir in (straight, halted)
    )
    assert same(whole, resumed) and whole["policy.network.actor_output.bias"].shape == (2,)
    assert cli.main(["evaluate", str(checkpoint), "--episodes", "1"]) == 0
    model = PPO.load_from_checkpoint(checkpoint)
    assert type(model.policy.head).__name__ == "LaplaceHead" and bool(model.policy.state_size) == (core == "lstm")
    deployed = Deployed(model.policy, model.observation_space, model.action_space)
    assert greatest_difference(deployed, export(deployed, tmp_path / "agent.pt2", "torch"), steps=5) < 1e-5


CAUTIOUS = """
from gymnasium import spaces

from lightning_ppo.policy.distributions import CategoricalHead


class Cautious(CategoricalHead):
    handles = (spaces.Discrete,)

    def __init__(self, space, temperature=1.0):
        super().__init__(space)
        self.temperature = temperature

    def parameters_of(self, outputs, action_masks=None):
        return super().parameters_of(outputs / self.temperature, action_masks)
"""

JSON = """
import json

import torch

from lightning_ppo.interop.exporters import Exporter


class JsonExporter(Exporter):
    ending = ".json"

    def write(self, deployed, path):
        path.write_text(json.dumps({"inputs": deployed.inputs}))
        return lambda tensors: deployed.named(tensors)
"""


def test_a_distribution_of_masked_choices_and_a_format_of_ones_own(own, tmp_path, capsys):
    for name, text in (
        ("cautious.py", CAUTIOUS),
        ("formats.py", JSON),
        ("tiles.py", documented("spaces.md", "tiles.py")),
    ):
        own(name, text)
    settings = ["policy.distribution.class_path=cautious.Cautious", "policy.distribution.init_args.temperature=2.0"]
    run_dir = tmp_path / "run"
    env = ["env.id=tiles:Tiles", "env.action_mask=info"]  # where an illegal choice ends in an assertion
    assert train.main([*SMALL, *env, *settings, "total_env_steps=64", f"run_dir={run_dir}"]) == 0
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    head = PPO.load_from_checkpoint(checkpoint).policy.head
    assert type(head).__name__ == "Cautious" and head.temperature == 2.0
    assert cli.main(["export", str(checkpoint), "--format", "formats.JsonExporter"]) == 0
    assert "greatest difference from the checkpoint on 1,000 random observations: 0" in capsys.readouterr().out
    assert (run_dir / "checkpoints" / "last.json").read_text() == '{"inputs": ["observations", "action_masks"]}'
    assert cli.main(["export", str(checkpoint), "--format", "onx"]) == 2
    assert (
        "format: expected a class path or one of onnx, torch, got 'onx'; did you mean onnx?" in capsys.readouterr().err
    )


BOX, FREE = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Box(-np.inf, np.inf, (2,), np.float32)


class OnFeatures(GaussianHead):
    """A head that wants to know how many features there are."""

    def __init__(self, space, num_features, log_std_init=0.0):
        super().__init__(space, log_std_init + num_features)


class OfAll(CategoricalHead):
    """A head for Discrete parts alone."""


def test_parts_that_a_distribution_does_not_handle_keep_their_own():
    space = spaces.Dict({"box": BOX, "choices": spaces.Discrete(3), "bits": spaces.MultiBinary(2)})
    head = make_action_head(space, OnFeatures, 0.5, 7)
    assert isinstance(head, CompositeHead)
    assert [type(part).__name__ for part in head.parts] == ["MultiCategoricalHead", "OnFeatures", "CategoricalHead"]
    assert head.parts[1].log_std.tolist() == [7.5, 7.5]
    other = make_action_head(space, "tests.project.test_walks.OfAll", 0.5)
    assert [type(part).__name__ for part in other.parts] == ["MultiCategoricalHead", "GaussianHead", "OfAll"]
    assert other.parts[1].log_std.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("distribution", "space", "error", "said"),
    [
        ("gausian", BOX, ConfigError, "policy.distribution: expected a class path or one of gaussian, "),
        ("torch.nn.Linear", BOX, ConfigError, "policy.distribution: torch.nn.Linear is no lightning_ppo.Action"),
        ("no.such.Head", BOX, ConfigError, "policy.distribution: cannot import 'no.such.Head'"),
        (OnFeatures, BOX, ConfigError, "policy.distribution: .* needs the features of the built-in network"),
        ({"class_path": "gaussian", "init_args": {"a": 1}}, BOX, ConfigError, "policy.distribution: .* could not be"),
        ("beta", FREE, UnsupportedSpaceError, "policy.distribution: beta needs an action space"),
        (OnFeatures, spaces.Text(3), UnsupportedSpaceError, "action space Text"),
    ],
)
def test_distributions_that_cannot_be_used_are_one_line(distribution, space, error, said):
    with pytest.raises(error, match=f"^{said}") as caught:
        make_action_head(space, distribution)
    assert "\n" not in str(caught.value)


def test_a_class_becomes_its_path_in_checkpoints():
    agent = PPO(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), policy={"distribution": OnFeatures})
    assert agent.hparams["policy"]["distribution"] == "tests.project.test_walks.OnFeatures"
    assert isinstance(agent.policy.head, OnFeatures)
