"""Two hosts train as one: torchrun on each, in network namespaces; skipped where those are not permitted."""

import json
import subprocess
import sys

import pytest

from tests.kit.paths import ROOT
from tests.kit.two_hosts import SKIPPED


@pytest.mark.ranks
def test_two_hosts_train_together(tmp_path):
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    script, run_dir = ROOT / "tests" / "kit" / "two_hosts.py", tmp_path / "run"
    small = ["env.num_envs=4", "evaluation.episodes=2", "evaluation.final_episodes=2", "total_env_steps=1024"]
    command = [sys.executable, str(script), str(run_dir), *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 x 4 envs x 64 steps = 512 per iteration" in done.stdout
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["world_size"], summary["env_steps"], summary["eval_episodes"]) == (2, 1024, 2)
