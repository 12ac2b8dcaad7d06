"""Scripts that train in several processes, as their users write them."""

import subprocess
import sys

import pytest

SCRIPT = """
import pytorch_lightning as pl
from lightning_ppo import PPO, RolloutDataModule
data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=8, overlap=True, rollouts_per_epoch=1)
model = PPO(data.observation_space, data.action_space, update={"minibatch_size": 16})
pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(model, data)
"""


@pytest.mark.ranks
def test_a_script_that_trains_whenever_it_is_imported_is_told_what_to_do(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()
    said = "the process that collects ended with exit code 1 before it began; it imports the script that trains, whose"
    assert any(said in line and "if __name__ == '__main__':" in line for line in last)
