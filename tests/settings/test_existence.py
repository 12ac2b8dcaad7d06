"""Typing errors are refused before anything heavy is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_ppo.run.arguments import as_config
from lightning_ppo.settings.existence import check_existence
from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import ConfigError, EnvironmentFault

ROOT = Path(__file__).parents[2]

TYPOS = {
    "totel_env_steps=1": "totel_env_steps: unknown setting; did you mean total_env_steps",
    "trainer.max_epoch=1": "trainer.max_epoch: unknown setting of the Trainer; did you mean trainer.max_epochs",
    "loggers=[wandbb]": "loggers: .*did you mean wandb",
    "callbacks=[EarlyStopping]": "callbacks: expected a class path",
    "callbacks=[pytorch_lightning.callbacks.EarlyStoping]": "did you mean pytorch_lightning.callbacks.EarlyStopping",
    "optimizer.class_path=torch.optim.AdmaW": "did you mean torch.optim.AdamW",
    "policy.network=my_nets.Mine": "policy.network: cannot import 'my_nets.Mine': No module named 'my_nets'",
    "env.id=HalfCheeta-v5": "env.id: .*did you mean HalfCheetah-v5",
    "env.wrappers=[nowhere.Wrapper]": "env.wrappers: .*No module named 'nowhere'",
    "objective=klip": "objective: .*did you mean clip",
}


def test_typing_errors_are_refused_without_torch_and_lightning():
    code = "import sys; from lightning_ppo.cli import main\n"
    code += f"for typo in {list(TYPOS)}: print(main(['train', typo]))\n"
    code += "print(sorted({'torch', 'pytorch_lightning', 'torchmetrics'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    *codes, loaded = ran.stdout.splitlines()
    assert loaded == "[]"
    assert codes == ["1" if typo.startswith("env.id") else "2" for typo in TYPOS]
    assert len(ran.stderr.splitlines()) == len(TYPOS)


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typing_error_is_named(typo):
    with pytest.raises((ConfigError, EnvironmentFault), match=TYPOS[typo]):
        check_existence(load([], [typo]))


def test_a_training_from_python_is_checked_alike():
    with pytest.raises(ConfigError, match=r"did you mean trainer\.max_epochs"):
        as_config({"trainer": {"max_epoch": 1}})


class Mine:
    """A class of a module that is known, although no file has its package."""


@pytest.mark.parametrize(
    "given",
    [
        f"callbacks=[{__name__}.Mine]",
        "callbacks=[gymnasium.wrappers.Anything]",  # its module makes names when they are asked for
        "callbacks=[os.path.Anything]",  # not where one would look for it
        "callbacks=[lightning.pytorch.callbacks.EarlyStopping]",  # who uses it says which name is the right one
        "callbacks=[lightning_ppo.callbacks.Timing]",  # it has moved, and who uses it says where
        "policy.network=__main__.Net",
        "env.id=nowhere:Env",
        "env.backend=envpool env.id=Nowhere-v7",
        "trainer.max_epochs=1",
    ],
)
def test_what_may_be_there_is_left_to_whoever_uses_it(given):
    check_existence(load([], given.split()))
