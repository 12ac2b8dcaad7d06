"""What callbacks change in a rollout and in the settings of the update."""

import pytest
import pytorch_lightning as pl
import torch

from tests.kit.training import make_pair, make_trainer


class Changes(pl.Callback):
    """Changes a rollout in the way that a test gives."""

    def __init__(self, change):
        self.change = change

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.change(batch)


def replaced(name):
    return lambda rollout: setattr(rollout, name, getattr(rollout, name).clone())


IN_VAIN = {
    "rewards": lambda rollout: rollout.rewards.add_(1.0),
    "a row of rewards": lambda rollout: rollout.rewards[0].zero_(),
    "rewards replaced": replaced("rewards"),
    "scaled_rewards": lambda rollout: rollout.scaled_rewards.mul_(2.0),
    "terminations": lambda rollout: rollout.terminations.fill_(True),
    "truncations replaced": replaced("truncations"),
    "next_values": lambda rollout: rollout.next_values.zero_(),
}
EFFECTIVE = {
    "advantages": lambda rollout: rollout.advantages.mul_(2.0),
    "returns replaced": replaced("returns"),
    "reads": lambda rollout: rollout.rewards.sum().item(),
}


@pytest.mark.parametrize("name", [*IN_VAIN, *EFFECTIVE])
def test_what_has_no_effect_any_more_is_one_line(name, caplog):
    model, data = make_pair("Pendulum-v1")
    make_trainer(max_epochs=1, callbacks=[Changes({**IN_VAIN, **EFFECTIVE}[name])]).fit(model, data)
    said = [record.message for record in caplog.records if "had been estimated" in record.message]
    assert len(said) == (name in IN_VAIN)
    assert not said or name.split()[-1 if name.startswith("a row") else 0] in said[0]


def test_advantages_that_a_callback_sets_are_learnt_from():
    weights = []
    for factor in (1.0, 1.0, -1.0):
        torch.manual_seed(0)
        model, data = make_pair("Pendulum-v1")
        change = Changes(lambda rollout, factor=factor: rollout.advantages.mul_(factor))
        make_trainer(max_epochs=1, callbacks=[change]).fit(model, data)
        weights.append(torch.cat([parameter.flatten() for parameter in model.policy.network.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2], atol=1e-4)


class ChangesSettings(pl.Callback):
    """Changes settings of the update after the first iteration."""

    def __init__(self, **values):
        self.values = values

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name, value in self.values.items():
            setattr(pl_module.update_settings, name, value)


@pytest.mark.parametrize(
    ("name", "value", "begins"),
    [
        ("clip_range", 0.01, None),
        ("entropy_coefficient", 10.0, None),
        ("entropy_coefficient", 0.0, 10.0),
        ("max_grad_norm", None, 1e-4),
        ("max_grad_norm", {"kind": "linear", "start": 1e-4, "end": 1e-5}, None),
        ("value_clip_range", 1e-3, None),
        ("epochs", 1, 4),
        ("minibatch_size", 16, None),
    ],
)
def test_settings_of_the_update_that_a_callback_changes_have_their_effect(name, value, begins):
    def trained(callbacks, **settings):
        torch.manual_seed(0)
        given = {"epochs": 2, "max_grad_norm": None, "minibatch_size": 32} | settings
        model, data = make_pair("Pendulum-v1", update=given, optimizer={"learning_rate": 1e-2})
        make_trainer(max_epochs=3, callbacks=callbacks).fit(model, data)
        return torch.cat([parameter.detach().flatten() for parameter in model.policy.network.parameters()])

    start = {} if begins is None else {name: begins}
    changed, unchanged = trained([ChangesSettings(**{name: value})], **start), trained([], **start)
    assert changed.isfinite().all() and not torch.allclose(changed, unchanged, atol=1e-5)
