"""What an uncompiled training does not need is not imported, and is there for whoever needs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    """Return what a new process prints."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_an_uncompiled_training_imports_neither_compiler_nor_matplotlib(tmp_path):
    small = "total_env_steps=64 env.num_envs=2 rollout.num_steps=16 update.minibatch_size=32 evaluation.episodes=1 "
    small += f"evaluation.final_episodes=1 policy.hidden_sizes=[4] run_dir={tmp_path}"
    code = f"import sys; from lightning_ppo.cli import main; main({['train', *small.split()]})"
    code += "; print('loaded', *sys.modules)"
    loaded = python(code).rpartition("loaded ")[2].split()
    assert "pytorch_lightning" in loaded and "torchmetrics" in loaded
    assert not {"torch._dynamo", "sympy", "matplotlib"} & set(loaded)


@pytest.mark.compiled
def test_compiled_modules_are_known_and_metrics_drawn_as_ever():
    pytest.importorskip("matplotlib")
    print(
        python("""
import lightning_ppo.speed.light_lightning
import sys, torch, torchmetrics
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.utilities.compile import from_compiled, to_uncompiled
model = BoringModel()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules and "matplotlib" not in sys.modules
compiled = torch.compile(model)
assert isinstance(compiled, torch._dynamo.OptimizedModule)
assert from_compiled(compiled) is model and to_uncompiled(model) is model
metric = torchmetrics.MeanMetric()
metric.update(torch.tensor(2.0))
figure, _ = metric.plot()
assert type(figure).__module__ == "matplotlib.figure"
import torchmetrics.utilities.plot as plots
assert plots.__file__
""")
    )


@pytest.mark.compiled
def test_a_lightning_that_does_not_take_it_is_imported_as_usual():
    python("""
import sys
class Newer:
    tried = 0
    def find_spec(self, name, path=None, target=None):
        if name == "lightning_fabric.wrappers":
            self.tried += 1
            if self.tried == 1:
                raise AttributeError("it asks the compiler for something else")
sys.meta_path.insert(0, newer := Newer())
import lightning_ppo.speed.light_lightning
assert "pytorch_lightning" not in sys.modules and "torch._dynamo" not in sys.modules
import pytorch_lightning, torch
from pytorch_lightning.utilities.compile import OptimizedModule
assert newer.tried == 2 and OptimizedModule is torch._dynamo.OptimizedModule
""")
