"""Weights that ranks share out (FSDP2): the same learning as DDP and one rank, checkpoints that are whole agents."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.distributed.fsdp import FSDPModule

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.support.errors import ConfigError
from tests.kit.preloaded import run_ranks
from tests.kit.ranks import distance, launch
from tests.kit.resuming import same
from tests.kit.training import make_trainer

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("control", ["sharded", "sharded, lstm"])
def test_ranks_that_share_weights_out_equal_one(control, tmp_path):
    alike = control.removeprefix("sharded").removeprefix(", ")
    (alone,) = launch(tmp_path / "one", 1, "CartPole-v1", alike)
    copies = launch(tmp_path / "ddp", 2, "CartPole-v1", alike)
    shards = launch(tmp_path / "fsdp2", 2, "CartPole-v1", control)
    for mine, theirs in zip(shards[0]["states"], shards[1]["states"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for other in (alone, copies[0]):
        assert distance(shards[0]["states"][0], other["states"][0]) < 2e-6
        assert distance(shards[0]["states"][4], other["states"][4]) < 2e-4
    assert shards[0]["metrics"] == shards[1]["metrics"]
    assert shards[0]["final"]["eval/episodes"] == 3


def test_blocks_loss_terms_and_pieces_are_those_of_one_rank_in_float64(tmp_path):
    """With rows that are no transitions, parameters that no rank shares, and the first minibatch at ratio 1."""
    (alone,) = launch(tmp_path / "one", 1, "CartPole-v1", "blocks, pieces", "64-true")
    shards = launch(tmp_path / "fsdp2", 2, "CartPole-v1", "sharded, blocks, pieces", "64-true")
    for iteration in range(5):
        bound = 1e-12 if iteration == 0 else 1e-9
        assert distance(shards[0]["states"][iteration], alone["states"][iteration]) <= bound
        scales = [float(run["states"][iteration]["loss_terms.scaled.scale"]) for run in (*shards, alone)]
        assert scales[0] == scales[1] == pytest.approx(scales[2], abs=bound) and scales[0] != 0.3
    for name, value in alone["metrics"][0].items():
        assert shards[0]["metrics"][0][name] == pytest.approx(value, rel=1e-7, abs=1e-9), name


SETTINGS = {
    "update": {"epochs": 2, "minibatch_size": 16, "max_grad_norm": 0.3},
    "policy": {"encoder": "tests.kit.ddp_worker.Blocks", "hidden_sizes": [5]},
    "loss_terms": ["tests.kit.ddp_worker.Scaled"],
}


def in_epochs(folder: str, epochs: int, name: str, resume: str | None = None) -> None:
    """Train in ranks that share the weights out, evaluate at each end of an epoch, and save whole files."""
    torch.set_num_threads(1)
    pl.seed_everything(5, verbose=False)
    data = RolloutDataModule(
        "CartPole-v1", 4, 16, backend="sync", rollouts_per_epoch=2, seed=5, evaluation={"episodes": 3}
    )
    model = PPO(data.observation_space, data.action_space, **SETTINGS)
    trainer = make_trainer(max_epochs=epochs, devices=2, strategy="fsdp2", limit_val_batches=1)
    trainer.fit(model, data, ckpt_path=resume)
    trainer.save_checkpoint(f"{folder}/{name}.ckpt")
    trainer.test(model, data, verbose=False)


def test_a_checkpoint_is_a_whole_agent_and_resuming_is_exact(tmp_path):
    folder = str(tmp_path)
    run_ranks(2, in_epochs, folder, 2, "through")
    run_ranks(2, in_epochs, folder, 1, "first")
    run_ranks(2, in_epochs, folder, 2, "resumed", f"{folder}/first.ckpt")
    through, resumed = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("through", "resumed"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "ppo"):
        assert same(through[part], resumed[part]), part
    assert not same(through["state_dict"], torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"])
    model = PPO.load_from_checkpoint(tmp_path / "through.ckpt", trust=["tests"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, through["state_dict"][name])
    assert model.predict(torch.zeros(4))[0] in (0, 1)
    # one device goes on from it, with Adam's moments
    data = RolloutDataModule("CartPole-v1", 4, 16, backend="sync", rollouts_per_epoch=2, seed=5)
    trainer = make_trainer(max_epochs=2)
    with pytest.warns(UserWarning, match="2 ranks"):
        trainer.fit(model, data, ckpt_path=tmp_path / "through.ckpt")
    moments = trainer.optimizers[0].state_dict()["state"]
    assert same(moments, through["optimizer_states"][0]["state"])


class Parallel(PPO):
    """Shares its weights out in pieces of its own choice."""

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.policy.network.actor_trunk)


def alone(folder: str) -> None:
    """Fit in a process of its own, which has a process group afterwards."""
    data = RolloutDataModule("CartPole-v1", 4, 16, rollouts_per_epoch=1)
    make = partial(Parallel, data.observation_space, data.action_space, **SETTINGS)
    with pytest.raises(ConfigError, match=r"rollout\.processes: ranks share the weights out"):
        others = RolloutDataModule("CartPole-v1", 4, 16, rollouts_per_epoch=1, processes=2)
        make_trainer(devices=1, strategy="fsdp2").fit(make(), others)
    model = make()
    make_trainer(devices=1, strategy="fsdp2").fit(model, data)
    assert model.iterations == 1 and isinstance(model.policy.network.actor_trunk, FSDPModule)
    with pytest.raises(ConfigError, match="an earlier fit has shared the weights out"):
        make_trainer().fit(model, data)


def test_what_does_not_go_together_is_refused(tmp_path):
    run_ranks(1, alone, str(tmp_path))


def half(folder: str) -> None:
    """Learn from one minibatch of the rank's whole rollout in bf16, and save the metrics."""
    pl.seed_everything(5, verbose=False)
    data = RolloutDataModule("CartPole-v1", 4, 16, backend="sync", rollouts_per_epoch=1, seed=5)
    settings = {"update": {"epochs": 1, "minibatch_size": 64}, "policy": SETTINGS["policy"]}
    model = PPO(data.observation_space, data.action_space, **settings)
    trainer = make_trainer(devices=2, strategy="fsdp2", precision="bf16-mixed")
    trainer.fit(model, data)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["update/kl"] > 0.0
    assert metrics["update/approximate_kl"] == metrics["update/clip_fraction"] == 0.0  # the ratio is 1


def test_the_ratio_is_one_in_bf16_too(tmp_path):
    run_ranks(2, half, str(tmp_path))
