"""What ranks agree on besides the update: when to stop, and what the summary is of; each rank a thread."""

import signal
from types import SimpleNamespace

import pytest
import torch

from lightning_ppo.run.stopping import GracefulStop, Interrupted
from lightning_ppo.run.training import train
from lightning_ppo.settings.loading import load
from lightning_ppo.support import distributed
from tests.kit.commands import SMALL, rows
from tests.kit.threads import in_ranks


def test_a_signal_to_one_rank_saves_and_stops_all():
    def stop(rank):
        saved: list[str] = []
        trainer = SimpleNamespace(save_checkpoint=saved.append, should_stop=False)
        module = SimpleNamespace(device=torch.device("cpu"))
        callback = GracefulStop("last.ckpt")
        callback.on_train_batch_end(trainer, module, None, None, 0)
        before = trainer.should_stop
        if rank == 1:
            callback._receive(signal.SIGTERM, None)
        callback.on_train_batch_end(trainer, module, None, None, 1)
        with pytest.raises(Interrupted) as stopped:
            callback.on_train_epoch_end(trainer, module)
        return before, trainer.should_stop, saved, stopped.value.exit_code

    assert in_ranks(2, stop) == [(False, True, ["last.ckpt"], 143)] * 2


def test_the_summary_is_of_the_episodes_of_all_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [own, [1000.0] * len(own)])
    summary = train(load([], [*SMALL, f"run_dir={tmp_path / 'run'}", "total_env_steps=256"]))
    logged = [row["rollout/return_mean"] for row in rows(tmp_path / "run" / "metrics.csv")]
    own = float(list(filter(None, logged))[-1])
    assert summary["train_return_mean"] == pytest.approx((own + 1000.0) / 2.0, rel=1e-6)
