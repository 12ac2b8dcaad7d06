"""A resumed run with `compile=auto` compiles as the undisturbed one did, and learns the same, bit for bit."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from lightning_ppo import train
from lightning_ppo.run.stopping import GracefulStop, Interrupted
from lightning_ppo.speed.fused_linear import cxx_compiler
from lightning_ppo.update import compiling

SETTINGS = {
    "env": {"id": "Pendulum-v1", "num_envs": 2},
    "rollout": {"num_steps": 8},
    "update": {"epochs": 1, "minibatch_size": 8},
    "policy": {"hidden_sizes": [4]},
    "evaluation": {"episodes": 0, "final_episodes": 0},
    "total_env_steps": 4 * 16,
    "trainer": {"enable_progress_bar": False},
}


class StopAfter(Callback):
    """Behaves as if a signal had come in the second iteration."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if pl_module.iterations == 1:
            (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))
            stop._receive(15, None)


@pytest.mark.compiled
@pytest.mark.skipif(cxx_compiler() is None, reason="needs a C++ compiler")
def test_resuming_is_exact(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "WORTH_IT", 8)  # of the whole run; 4 are left when it is resumed
    whole = train(SETTINGS | {"run_dir": str(tmp_path / "whole")})
    with pytest.raises(Interrupted):
        train(SETTINGS | {"run_dir": str(tmp_path / "parts")}, [StopAfter()])
    rest = train({"run_dir": str(tmp_path / "parts"), "resume": "last"})
    assert whole["compile_seconds"] > 0 and rest["compile_seconds"] > 0
    assert capsys.readouterr().out.count("update compiled (a long run)") == 3
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert one["ppo"]["env_steps"] == other["ppo"]["env_steps"] == 64
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
