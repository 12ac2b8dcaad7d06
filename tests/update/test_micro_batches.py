"""Gradients that add up over pieces of a minibatch are those of the minibatch, and no pass is larger than a piece."""

from typing import ClassVar

import gymnasium
import pytest
import pytorch_lightning as pl
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.settings.algorithm import UpdateConfig, resolve_sequence_length
from lightning_ppo.support.errors import ConfigError
from tests.kit.envs import vector
from tests.kit.rich_envs import Guided
from tests.kit.training import make_pair, make_trainer

SMOOTH = {"class_path": "lightning_ppo.update.loss_terms.DualClip", "init_args": {"bound": 1.001}}


class Seen(nn.Module):
    """Encodes nothing, and keeps how many rows it was given at once."""

    rows: ClassVar[list[int]] = []

    def __init__(self, space: gymnasium.Space) -> None:
        super().__init__()
        self.num_features = 4

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return x


def learnt(micro: int | None, precision: str = "32-true", core: str | None = None, **settings) -> tuple[PPO, dict]:
    """Return an agent after one iteration with masks, a Dict and rows that are no transitions, and its metrics."""
    pl.seed_everything(7, verbose=False)
    env = vector([Guided] * 4, AutoresetMode.NEXT_STEP)
    data = RolloutDataModule(env, num_steps=16, rollouts_per_epoch=1, seed=7, stagger=False)
    update = {"epochs": 2, "minibatch_size": 16, "micro_batch_size": micro, "entropy_coefficient": 0.01}
    model = PPO(
        data.observation_space,
        data.action_space,
        update=update | {"sequence_length": 4 if core else None},
        policy={"hidden_sizes": [8], "core": core, "core_size": 4} if core else {"hidden_sizes": [8]},
        # with Adam's own epsilon rounding decides about steps in directions that have hardly a gradient
        optimizer={"learning_rate": 1e-3, "epsilon": 1e-2},
        **settings,
    )
    trainer = make_trainer(precision=precision)
    trainer.fit(model, data)
    return model, {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("time/")}


EAGER = [
    (None, {"loss_terms": [SMOOTH]}),
    ("lstm", {}),
    ("gru", {"plain": True}),
    (None, {"plain": True}),
    (None, {"objective": "adaptive_kl"}),
]


def check_same(core, settings, micro, precision):
    (whole, measured), (pieces, also) = (learnt(size, precision, core, **settings) for size in (None, micro))
    tolerance = 1e-12 if precision == "64-true" else 1e-6
    for (name, one), other in zip(whole.state_dict().items(), pieces.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0.0, atol=tolerance, msg=name)
    assert measured.keys() == also.keys() and whole.env_steps < 64  # some rows are no transitions
    for name, value in measured.items():
        assert also[name] == pytest.approx(value, rel=1e-9 if precision == "64-true" else 1e-3, abs=tolerance), name


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize(("core", "settings"), EAGER, ids=str)
@pytest.mark.parametrize("micro", [4, 8])
def test_steps_are_those_of_whole_minibatches(core, settings, micro, precision):
    check_same(core, settings, micro, precision)


@pytest.mark.compiled
@pytest.mark.parametrize("core", [None, "lstm"])
def test_compiled_steps_are_those_of_whole_minibatches(core):
    check_same(core, {"compile": True}, 4, "64-true")


def test_no_pass_is_larger_than_a_piece(monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(Seen, "rows", seen)
    settings = {"epochs": 1, "minibatch_size": 32, "recompute_advantages": True, "target_kl": 1.0}
    for micro, most in ((None, 64), (8, 8)):
        seen.clear()
        policy = {"encoder": f"{__name__}.Seen", "hidden_sizes": [4]}
        model, data = make_pair(update=settings | {"micro_batch_size": micro}, policy=policy, compile=False)
        make_trainer().fit(model, data)
        assert max(seen) == most and seen.count(8 if micro else 32) > 2


def test_what_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"update\.micro_batch_size: must divide update\.minibatch_size=128, got 48"):
        UpdateConfig(micro_batch_size=48)
    with pytest.raises(ConfigError, match="got 0"):
        UpdateConfig(micro_batch_size=0)
    update = UpdateConfig(micro_batch_size=16)
    assert resolve_sequence_length(64, update, recurrent=False) == 1
    with pytest.raises(ConfigError, match=r"16 rows are no whole sequences of 32 steps; .*update\.sequence_length=16"):
        resolve_sequence_length(64, update, recurrent=True)
    assert resolve_sequence_length(64, UpdateConfig(micro_batch_size=16, sequence_length=8), recurrent=True) == 8


def test_what_needs_whole_minibatches_is_told():
    with pytest.raises(ConfigError, match=r"update\.micro_batch_size: the step of trpo"):
        make_pair(objective="trpo", update={"minibatch_size": 16, "micro_batch_size": 8})
    policy = {"encoder": f"{__name__}.Normalised"}
    model, data = make_pair(update={"epochs": 1, "minibatch_size": 16, "micro_batch_size": 8}, policy=policy)
    with pytest.warns(UserWarning, match=r"update\.micro_batch_size: batch normalisation .* 8 rows at a time"):
        make_trainer().fit(model, data)


class Normalised(nn.Module):
    """Normalises a batch."""

    def __init__(self, space: gymnasium.Space) -> None:
        super().__init__()
        self.num_features = 4
        self.layer = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)
