"""States of thousands of small tensors are saved as a few large ones and come back as they were."""

import io

import torch

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.support.packing import pack, unpack
from tests.kit.training import make_trainer


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_unpack_undoes_pack_through_a_file():
    data = {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "nested": [{"a": torch.arange(6).view(2, 3).t()}, (torch.tensor([True]), None, 7, "x"), [], ()],
        "double": torch.rand(2, 1, 2, dtype=torch.float64),
        "byte": torch.arange(5, dtype=torch.uint8)[1:4],
    }
    file = io.BytesIO()
    torch.save(pack(data), file)
    file.seek(0)
    found = unpack(torch.load(file, weights_only=True))
    assert same(found, data)
    memory = [found["scalar"], found["empty"], found["double"], found["byte"]]
    assert len({tensor.untyped_storage().data_ptr() for tensor in memory if tensor.numel()}) == 3


def test_a_checkpoint_of_many_environments_has_few_tensors(tmp_path):
    data = RolloutDataModule("CartPole-v1", num_envs=16, num_steps=8, rollouts_per_epoch=1, seed=1)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(PPO(data.observation_space, data.action_space), data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    (state,) = torch.load(tmp_path / "one.ckpt", weights_only=True)["RolloutDataModule"]["ranks"]
    assert len(state["tensors"]) < 8
    assert len(unpack(state)["collector"]["stepper"]["env"]) > 0


def test_what_was_equal_is_not_the_same_afterwards():
    parts = unpack(pack([torch.zeros(2048) for _ in range(3)]))
    for number, part in enumerate(parts):
        part += number + 1.0
    assert [float(part[0]) for part in parts] == [1.0, 2.0, 3.0]
