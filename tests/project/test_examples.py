"""The examples: each one runs with a tiny budget, and says what the documentation says.

tests/project/test_search.py runs examples/search.py.
"""

import ast
import asyncio
import gc
import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO, RolloutDataModule, cli
from tests.kit.paths import ROOT
from tests.kit.signals import send

EXAMPLES = ROOT / "examples"
MULTI_NODE = EXAMPLES / "multi_node"
TINY = 2048

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
]


@pytest.fixture
def example(monkeypatch):
    """Return a function that imports an example as `python examples/NAME.py` would find it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.docs
def test_own_environment(example):
    module = example("own_environment")
    assert -200.0 < module.main(TINY) <= 10.0
    env = module.Docking()
    env.reset(seed=3)
    env.position, env.velocity = 0.05, 0.0
    _, reward, terminated, truncated, _ = env.step(env.action_space.low * 0.0)
    assert (reward, terminated, truncated) == (10.0, True, False)
    env = module.Docking(max_steps=1)
    env.reset(seed=3)
    env.position = 1.0
    _, reward, terminated, truncated, _ = env.step(env.action_space.low * 0.0)
    assert (reward, terminated, truncated) == (-1.0, False, True)


@pytest.mark.docs
@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "network"])
def test_own_network(example, whole, capsys):
    assert 5.0 <= example("own_network").main(TINY, whole) <= 500.0
    assert ("SharedNetwork" if whole else "FourierEncoder") in capsys.readouterr().out


@pytest.mark.docs
@pytest.mark.representative
def test_own_loss(example):
    module = example("own_loss")
    assert 5.0 <= module.main(TINY) <= 500.0
    data = RolloutDataModule("CartPole-v1", num_envs=1)
    model = module.SimplePolicyOptimization(data.observation_space, data.action_space)
    data.teardown("fit")
    # r = 1.2 = 1 + epsilon, A = 2: r A - |A| (r - 1)^2 / (2 epsilon) = 2.4 - 2 * 0.04 / 0.4 = 2.2, at its maximum
    log_ratios = torch.tensor([1.2]).log().requires_grad_()
    terms = type("Terms", (), {"log_ratios": log_ratios, "advantages": torch.tensor([2.0])})
    loss = model.policy_loss(terms)
    (slope,) = torch.autograd.grad(loss.sum(), log_ratios)
    assert loss.item() == pytest.approx(-2.2) and slope.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.docs
def test_curriculum(example):
    module = example("curriculum")
    assert 0.0 <= module.main(TINY) <= 1.0
    callback, seen = module.Curriculum(length=3, goal=0.0), []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(set(trainer.datamodule.env.get_attr("length")))

    data = RolloutDataModule("curriculum:Corridor", num_envs=2, num_steps=64, evaluation={"episodes": 0})
    model = PPO(data.observation_space, data.action_space, total_env_steps=3 * 128)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=-1, accelerator="cpu", callbacks=[callback, Look()], **quiet)
    trainer.fit(model, data)
    assert seen == [{4}, {5}, {6}]  # every training copy, after every update
    resumed = module.Curriculum()
    resumed.load_state_dict(callback.state_dict())
    assert resumed.length == 6


@pytest.mark.docs
def test_deployment(example, tmp_path, monkeypatch):
    module = example("deployment")
    returns = module.main(tmp_path, TINY)
    assert len(returns) == 5 and all(5.0 <= value <= 500.0 for value in returns)
    assert module.main(tmp_path / "again", checkpoint=tmp_path / "agent.ckpt") == returns
    for name in [name for name in sys.modules if name.split(".")[0] in ("lightning_ppo", "pytorch_lightning")]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    assert module.act(tmp_path / "agent.pt2") == returns


def cells(notebook: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.docs
def test_the_notebook_runs_and_shows_the_agent(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra benchmark")
    pytest.importorskip("pygame", reason="needs the extra video")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    matplotlib.use("agg")
    namespace: dict = {"__name__": "__main__"}
    monkeypatch.setattr(signal, "raise_signal", send)
    shown = []
    for cell in cells(EXAMPLES / "quickstart.ipynb", "code"):
        source = "".join(line for line in cell["source"] if not line.startswith(("!", "%")))
        source = re.sub(r"^TOTAL_ENV_STEPS = .*$", f"TOTAL_ENV_STEPS = {TINY}", source, flags=re.MULTILINE)
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "quickstart.ipynb", "exec"), namespace)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "quickstart.ipynb", "eval"), namespace))
    evaluated, total, film = (value for value in shown if value is not None)
    assert 5.0 <= evaluated <= 500.0 and 5.0 <= total <= 500.0
    history = namespace["history"]
    assert len(history.returns) == 2 and history.env_steps[-1] == namespace["model"].env_steps <= TINY
    assert film._repr_html_().count("data:image/png;base64") == len(namespace["frames"][::10])
    matplotlib.pyplot.close("all")


@pytest.mark.docs
def test_the_notebook_runs_in_a_kernel(tmp_path, monkeypatch):
    for module in ("nbclient", "ipykernel", "matplotlib", "pygame"):
        pytest.importorskip(module, reason="needs nbclient, ipykernel and the extras benchmark and video")
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"^!.*$", "", cell.source, flags=re.MULTILINE)
        cell.source = re.sub(r"^TOTAL_ENV_STEPS = .*$", f"TOTAL_ENV_STEPS = {TINY}", cell.source, flags=re.MULTILINE)
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    client = NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # of sockets that nbclient leaves open
        client.execute(reset_kc=True)
        asyncio.run(manager.shutdown_kernel(now=True))
        del client, manager
        gc.collect()
    written = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = "".join(output.get("text", "") for output in written)
    pictures = [output.data for output in written if "data" in output]
    assert "stopped by SIGINT" in texts and "play it" in texts
    assert sum("image/png" in data for data in pictures) == 2  # both plots
    assert sum("data:image/png;base64" in data.get("text/html", "") for data in pictures) == 1  # the film
    assert "Traceback" not in texts


def test_the_notebook_is_kept_without_outputs():
    for cell in cells(EXAMPLES / "quickstart.ipynb", "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell script as words, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def documented(launcher: str) -> str:
    """Return the block of docs/scaling.md that starts processes by a launcher."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "scaling.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if re.search(rf"^{launcher} ", block, re.MULTILINE)]
    return block


@pytest.mark.parametrize(("script", "launcher"), [("slurm.sh", "srun"), ("torchrun.sh", "torchrun")])
def test_multi_node_scripts_are_those_of_the_documentation(script, launcher):
    text = (MULTI_NODE / script).read_text()
    subprocess.run(["bash", "-n", str(MULTI_NODE / script)], check=True)
    assert all(command in commands(text) for command in commands(documented(launcher)))
    options = re.compile(r"^#SBATCH .*$", re.MULTILINE)
    assert set(options.findall(documented(launcher))) <= set(options.findall(text))


def launched(script: str, launcher: str) -> list[str]:
    """Return the arguments of `train` that a script's launcher gives."""
    (command,) = [words for words in commands((MULTI_NODE / script).read_text()) if words[0] == launcher]
    return command[command.index("train") :]


@pytest.mark.parametrize(
    ("script", "launcher", "nodes", "processes"),
    [
        ("slurm.sh", "srun", r"^#SBATCH --nodes=(\d+)$", r"^#SBATCH --ntasks-per-node=(\d+)$"),
        ("torchrun.sh", "torchrun", r"--nnodes=(\d+)", r"--nproc_per_node=(\d+)"),
    ],
    ids=["slurm", "torchrun"],
)
def test_multi_node_scripts_start_as_many_processes_as_the_settings_say(script, launcher, nodes, processes):
    text = (MULTI_NODE / script).read_text()
    settings = launched(script, launcher)
    assert f"trainer.num_nodes={re.search(nodes, text, re.MULTILINE).group(1)}" in settings
    assert f"trainer.devices={re.search(processes, text, re.MULTILINE).group(1)}" in settings


def test_multi_node_scripts_train_the_same_with_settings_that_exist(monkeypatch, capsys):
    called = launched("slurm.sh", "srun")
    assert called == launched("torchrun.sh", "torchrun")
    monkeypatch.chdir(ROOT)
    assert cli.main([*called, "--print-config"]) == 0
    assert "id: HalfCheetah-v5" in capsys.readouterr().out


def test_the_table_names_every_example():
    named = set(re.findall(r"^\| \[(.*?)\]\((.*?)\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    files = [path for pattern in ("*.py", "*.ipynb", "multi_node/*.sh") for path in EXAMPLES.glob(pattern)]
    assert named == {(str(path.relative_to(EXAMPLES)),) * 2 for path in files}
