"""What `configure_optimizers` may return, when its schedulers are stepped, and learning rates that are set by hand."""

import copy
import itertools
import math
import re
import warnings

import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Muon
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from lightning_ppo import PPO
from lightning_ppo.support.errors import ConfigError, NonFiniteError
from tests.kit.resuming import same
from tests.kit.training import eager_and_compiled, make_pair, make_trainer, with_validation


def configured(make):
    """Return a PPO whose optimizers are what `make` returns for it."""
    return type("Configured", (PPO,), {"configure_optimizers": make})


class Rates(pl.Callback):
    """Notes the rate that each iteration is made with, after its first step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *args):
        self.seen.append(float(trainer.callback_metrics["update/learning_rate"]))


def rates(make, epochs=4, rollouts=2, evaluates=False, **kwargs):
    model, data = with_validation(rollouts_per_epoch=rollouts, model=configured(make), **kwargs)
    noted = Rates()
    trainer = make_trainer(max_epochs=epochs, callbacks=[noted], limit_val_batches=1.0 if evaluates else 0)
    trainer.fit(model, data)
    return noted.seen, trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"interval": "epoch", "frequency": 2}, [1e-3] * 4 + [5e-4] * 4 + [2.5e-4]),
        ({"interval": "epoch"}, [1e-3] * 2 + [5e-4] * 2 + [2.5e-4] * 2 + [1.25e-4] * 2 + [6.25e-5]),
        ({"interval": "step", "frequency": 3}, [1e-3] * 3 + [5e-4] * 3 + [2.5e-4] * 3),
        ({}, [1e-3 * 0.5**k for k in range(9)]),
    ],
)
def test_interval_and_frequency_of_a_scheduler(settings, expected):
    def make(self):
        optimizer = Adam(self.parameters(), 1e-3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1, 0.5), **settings}}

    seen, last = rates(make)
    assert [*seen, last] == pytest.approx(expected)


def plateau(monitor, mode="max", **settings):
    """Return a `configure_optimizers` that halves the rate of 1e-3 whenever the metric has not improved by 1e9."""

    def make(self):
        optimizer = Adam(self.parameters(), 1e-3)
        scheduler = ReduceLROnPlateau(optimizer, mode, 0.5, patience=0, threshold=1e9, threshold_mode="abs")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor, **settings}}

    return make


@pytest.mark.parametrize(
    ("monitor", "settings", "expected"),
    [
        # the first value is the best there is, every later one a bad one
        ("update/kl", {}, [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5]),
        ("update/kl", {"interval": "epoch"}, [1e-3] * 4 + [5e-4] * 2),
        ("eval/return_mean", {}, [1e-3] * 4 + [5e-4] * 2),
        ("eval/return_mean", {"frequency": 2}, [1e-3] * 6),
    ],
)
def test_a_plateau_is_judged_where_its_metric_becomes_known(monitor, settings, expected):
    seen, _ = rates(plateau(monitor, **settings), epochs=3, evaluates=True)
    assert seen == pytest.approx(expected)


def test_a_plateau_of_a_metric_of_a_subclass():
    class Own(configured(plateau("mine"))):
        def training_step(self, rollout, batch_idx):
            super().training_step(rollout, batch_idx)
            self.log("mine", 1.0, on_step=True, on_epoch=False, batch_size=1)

    class AtTheEnd(configured(plateau("mine", interval="epoch"))):
        def training_step(self, rollout, batch_idx):
            super().training_step(rollout, batch_idx)
            self.log("mine", 1.0, on_step=False, on_epoch=True, batch_size=1)

    for kind, expected in ((Own, [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5]), (AtTheEnd, [1e-3] * 4 + [5e-4] * 2)):
        model, data = with_validation(model=kind)
        noted = Rates()
        make_trainer(max_epochs=3, callbacks=[noted]).fit(model, data)
        assert noted.seen == pytest.approx(expected)


def test_a_monitor_that_nobody_logs_is_named():
    model, data = make_pair(model=configured(plateau("evil/return_mean")))
    with pytest.raises(ConfigError, match=r"ReduceLROnPlateau monitors 'evil/return_mean', which is not logged; there"):
        make_trainer().fit(model, data)
    model, data = make_pair(model=configured(plateau("evil/return_mean", strict=False)))
    with pytest.warns(UserWarning, match="monitors 'evil/return_mean', which is not logged"):
        make_trainer().fit(model, data)


def muon(self):
    matrices = [p for p in self.policy.network.parameters() if p.ndim == 2]
    others = [p for p in self.parameters() if all(p is not q for q in matrices)]
    optimizers = [Muon(matrices, lr=1e-3), AdamW(others, lr=1e-3)]
    return optimizers, [StepLR(optimizer, 1, 0.9) for optimizer in optimizers]


@eager_and_compiled
def test_optimizers_over_disjoint_parameters_each_step_their_own(compiled):
    """Two of SGD are one of SGD, with one bound on the norm of all gradients."""

    def two(self):
        parameters = list(self.parameters())
        return [SGD(parameters[::2], 0.1), SGD(parameters[1::2], 0.1)]

    weights = []
    for make in (two, lambda self: SGD(self.parameters(), 0.1)):
        model, data = make_pair(model=configured(make), compile=compiled)
        trainer = make_trainer()
        trainer.fit(model, data)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert trainer.global_step == 8 * len(trainer.optimizers)
    assert torch.equal(*weights)


def test_muon_with_adamw_is_resumed_bit_for_bit(tmp_path):
    def run(epochs, ckpt=None):
        model, data = make_pair(model=configured(muon), rollouts_per_epoch=2)
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(model, data, ckpt_path=ckpt, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return torch.load(tmp_path / f"{epochs}.ckpt", weights_only=True)

    run(1)
    # into another file, so that both are there to be compared
    resumed = run(2, tmp_path / "1.ckpt")
    through = run(2)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(resumed[part], through[part])
    assert len(through["optimizer_states"]) == 2
    assert [state["_last_lr"] for state in through["lr_schedulers"]] == [[pytest.approx(1e-3 * 0.9**4)]] * 2


def test_the_rate_of_every_optimizer_is_logged(tmp_path):
    model, data = make_pair(model=configured(muon))
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = make_trainer(logger=logger, log_every_n_steps=1, callbacks=[LearningRateMonitor("step")])
    trainer.fit(model, data)
    assert trainer.callback_metrics["update/learning_rate_2"] == pytest.approx(1e-3)
    assert {"lr-Muon", "lr-AdamW"} <= set((tmp_path / "metrics.csv").read_text().split("\n")[0].split(","))


class Counting(SGD):
    """Keeps a number of its own besides its tensors."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["count"] = self.state[p].get("count", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize("plain", [False, True])
def test_no_optimizer_steps_from_a_loss_that_is_not_finite_on(plain):
    class Breaks(PPO):
        def configure_optimizers(self):
            parameters = list(self.parameters())
            return [Adam(parameters[::2]), Counting(parameters[1::2], 1e-3, momentum=0.9)]

        def minibatch_loss(self, minibatch):
            loss, reported = super().minibatch_loss(minibatch)
            self.made = getattr(self, "made", 0) + 1
            if self.made == 13:
                states = [copy.deepcopy(o.state_dict()) for o in self.trainer.optimizers]
                self.before = states, [p.detach().clone() for p in self.parameters()]
            return loss * (math.nan if self.made == 13 else 1.0), reported  # the 5th of the second iteration

    model, data = make_pair(model=Breaks, rollouts_per_epoch=2, plain=plain)
    trainer = make_trainer()
    with pytest.raises(NonFiniteError, match="minibatch 1 of update epoch 2, iteration 2"):
        trainer.fit(model, data)
    states, weights = model.before
    assert model.made == 16
    assert same([o.state_dict() for o in trainer.optimizers], states)
    assert states[1]["state"][0]["count"] == 12
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), weights, strict=True))


def twice(self):
    return [Adam(self.parameters()), Adam(itertools.islice(self.parameters(), 1))]


def without_monitor(self):
    optimizer = Adam(self.parameters())
    return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer)}


def of_another(self):
    return [Adam(self.parameters())], [StepLR(Adam(self.parameters()), 1)]


def scheduled(**settings):
    def make(self):
        optimizer = Adam(self.parameters())
        return [optimizer], [{"scheduler": StepLR(optimizer, 1), **settings}]

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda self: LBFGS(self.parameters()), "LBFGS evaluates the loss again"),
        (lambda self: None, "returned None, so nothing would be trained"),
        (lambda self: {"lr_scheduler": None}, "returned a mapping without the entry 'optimizer'"),
        (lambda self: [], r"returned \[\], so nothing"),
        (lambda self: "adam", "Unknown configuration"),
        (lambda self: Adam(nn.Linear(2, 3).parameters()), r"a parameter of shape \(3, 2\) that is not the model's"),
        (twice, "is in Adam and in Adam; each parameter has one optimizer"),
        (without_monitor, "must include a monitor"),
        (of_another, "attached with an optimizer that wasn't returned"),
        (scheduled(interval="batch"), 'must be "step" or "epoch"'),
        (scheduled(frequency=0), "frequency must be at least 1, got 0"),
        (lambda self: ([Adam(self.parameters())], ["cosine"]), "'cosine' is no scheduler"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_collected(make, said, monkeypatch):
    model, data = make_pair(model=configured(make))
    monkeypatch.setattr("lightning_ppo.collection.collector.Collector.collect", lambda self: pytest.fail("collected"))
    with pytest.raises(ConfigError, match=f"^configure_optimizers: .*{said}") as caught:
        make_trainer().fit(model, data)
    assert "\n" not in str(caught.value)


def test_parameters_in_no_optimizer_are_told_and_stay():
    model, data = make_pair(model=configured(lambda self: Adam(self.policy.network.actor_trunk.parameters(), 1e-3)))
    critic = model.policy.network.critic_output.weight.detach().clone()
    with pytest.warns(UserWarning, match=r"\d+ parameters are in no optimizer and stay as they are: policy\.network"):
        make_trainer().fit(model, data)
    assert torch.equal(model.policy.network.critic_output.weight, critic)


# ---------------------------------------------------------------- set by hand


class Sets(pl.Callback):
    """Sets the learning rate at the start of some iterations, and notes what their updates use."""

    def __init__(self, values):
        self.values, self.used = values, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if module.iterations in self.values:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = self.values[module.iterations]

    def on_before_optimizer_step(self, trainer, module, optimizer):
        rate = optimizer.param_groups[0]["lr"]
        if len(self.used) == module.iterations:
            self.used.append(rate)
        assert self.used[-1] == rate


LINEAR = {"kind": "linear", "start": 1e-3, "end": 0.0}
STEERED = {"kind": "adaptive_kl", "start": 3e-4, "target_kl": 1e6, "minimum": 1e-6, "maximum": 1e-3}  # up by 1.5


@pytest.mark.parametrize(
    ("schedule", "values", "expected", "told"),
    [
        (3e-4, {0: 1e-5, 1: 2e-5}, [1e-5, 2e-5, 2e-5, 2e-5], None),
        (3e-4, {2: 1e-5}, [3e-4, 3e-4, 1e-5, 1e-5], None),
        (LINEAR, {0: 1e-5, 1: 1e-5}, [1e-5, 1e-5, 5e-4, 2.5e-4], r"optimizer.learning_rate \(linear\) sets that"),
        (STEERED, {1: 1e-5}, [3e-4, 1e-5, 1.5e-5, 2.25e-5], r"learning_rate \(adaptive_kl\) continues from it"),
        (STEERED, {1: 1.0}, [3e-4, 1.0, 1e-3, 1e-3], r"within its bounds"),
    ],
)
def test_a_rate_that_a_callback_sets_is_used(schedule, values, expected, told):
    model, data = make_pair(rollouts_per_epoch=4, optimizer={"learning_rate": schedule})
    sets = Sets(values)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(callbacks=[sets]).fit(model, data)
    assert sets.used == pytest.approx(expected)
    lines = [str(w.message) for w in caught if "learning rate set by hand" in str(w.message)]
    assert len(lines) == (told is not None)
    if told:
        assert re.search(told, lines[0])


def test_a_rate_set_by_hand_is_in_the_checkpoint(tmp_path):
    model, data = make_pair(optimizer={"learning_rate": 3e-4})
    trainer = make_trainer(callbacks=[Sets({0: 1e-5})])
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    used = []
    for schedule in (3e-4, 2e-4):  # what is changed on resuming wins
        again, data = make_pair(optimizer={"learning_rate": schedule})
        sets = Sets({})
        sets.used.append(None)
        make_trainer(max_epochs=2, callbacks=[sets]).fit(
            again, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )
        used.append(sets.used[-1])
    assert used == [1e-5, 2e-4]


def test_a_rate_set_between_two_fits_holds_from_the_next_one(tmp_path):
    model, data = make_pair(optimizer={"learning_rate": 3e-4})
    trainer = make_trainer()
    trainer.fit(model, data)
    model.learning_rate = 1e-5
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, data)
    assert trainer.callback_metrics["update/learning_rate"] == pytest.approx(1e-5)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert PPO.load_from_checkpoint(tmp_path / "last.ckpt").learning_rate(0.0) == 1e-5
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate"):
        model.learning_rate = "fast"
    # that of an optimizer that is gone says so
    trainer.optimizers[0].param_groups[0]["lr"] = 1e-6
    trainer.fit_loop.max_epochs = 3
    with pytest.warns(UserWarning, match=r"of an earlier fit is not used: .* set model\.learning_rate"):
        trainer.fit(model, data)


def test_parameter_groups_keep_the_ratio_of_their_rates():
    def make(self):
        found = PPO.configure_optimizers(self)
        actor = list(self.policy.network.actor_output.parameters())
        group = found["optimizer"].param_groups[0]
        group["params"] = [p for p in group["params"] if all(p is not q for q in actor)]
        group["betas"] = (0.8, 0.9)
        found["optimizer"].add_param_group({"params": actor, "lr": 1e-4})
        return found

    model, data = make_pair(
        model=configured(make), rollouts_per_epoch=4, optimizer={"learning_rate": {**LINEAR, "end": 5e-4}}
    )
    trainer = make_trainer()
    trainer.fit(model, data)
    last = 1e-3 - 0.75 * 5e-4
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([last, last / 10])
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.8, 0.9)


# optimizers and schedulers that settings name


SPACES = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,))


class Halving(StepLR):
    """A scheduler of the user's own."""

    def __init__(self, optimizer, gamma=0.5):
        super().__init__(optimizer, 1, gamma)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (None, [1e-3] * 4),
        ("tests.update.test_optimizers.Halving", [1e-3, 5e-4, 2.5e-4, 1.25e-4]),
        ({"class_path": Halving, "init_args": {"gamma": 0.1}, "frequency": 2}, [1e-3, 1e-3, 1e-4, 1e-4]),
        ({"class_path": "tests.update.test_optimizers.Halving", "interval": "epoch"}, [1e-3, 1e-3, 5e-4, 5e-4]),
        (
            {
                "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                "init_args": {"mode": "max", "factor": 0.5, "patience": 0, "threshold": 1e9, "threshold_mode": "abs"},
                "monitor": "update/kl",
            },
            [1e-3, 1e-3, 5e-4, 2.5e-4],
        ),
    ],
)
def test_settings_name_optimizer_and_scheduler(scheduler, expected):
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.1}, "learning_rate": 1e-3}
    model, data = with_validation(optimizer={**optimizer, "scheduler": scheduler})
    noted = Rates()
    trainer = make_trainer(max_epochs=2, callbacks=[noted], limit_val_batches=0)
    trainer.fit(model, data)
    assert noted.seen == pytest.approx(expected)
    (made,) = trainer.optimizers
    assert type(made) is AdamW and made.param_groups[0]["weight_decay"] == 0.1


def test_a_named_optimizer_follows_the_steered_learning_rate():
    runs = {}
    for name in ("adam", "torch.optim.Adam"):
        more = {"init_args": {"eps": 1e-5}} if "." in name else {}
        steered = {"kind": "adaptive_kl", "start": 1e-3, "target_kl": 1e-6}
        model, data = with_validation(optimizer={"class_path": name, "learning_rate": steered, **more})
        noted = Rates()
        make_trainer(max_epochs=3, callbacks=[noted], limit_val_batches=0).fit(model, data)
        runs[name] = noted.seen, list(model.parameters())
    (rates, weights), (others, other_weights) = runs.values()
    assert rates == pytest.approx(others) and rates[-1] < rates[0]
    for one, other in zip(weights, other_weights, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"class_path": "adamw"}, "optimizer: expected a class path or one of adam, got 'adamw'; did you mean adam?"),
        ({"class_path": "torch.nn.Linear"}, "optimizer: torch.nn.Linear is no torch.Optimizer"),
        ({"class_path": "torch.optim.Nadamm"}, "optimizer: cannot import 'torch.optim.Nadamm'"),
        ({"class_path": SGD, "init_args": {"mass": 1}}, "optimizer: torch.optim.sgd.SGD could not be built: "),
        ({"class_path": SGD, "init_args": {"lr": 1.0}}, "optimizer.init_args.lr: the learning rate is optimizer.lea"),
        ({"class_path": SGD, "init_args": 3}, "optimizer.init_args: expected a mapping, got 3"),
        ({"class_path": SGD, "betas": [0.5, 0.9]}, "optimizer.betas: of adam alone; give torch.optim.sgd.SGD its own"),
        ({"class_path": SGD, "epsilon": 1e-8}, "optimizer.epsilon: of adam alone"),
        ({"init_args": {"eps": 1.0}}, "optimizer.init_args: adam takes optimizer.betas and optimizer.epsilon"),
        ({"scheduler": StepLR}, "optimizer.scheduler: it starts at optimizer.learning_rate, which must be a number"),
        ({"scheduler": "cosine", "learning_rate": 1.0}, "optimizer.scheduler: expected a class path such as"),
        ({"scheduler": {"class_path": StepLR, "every": 2}, "learning_rate": 1.0}, "optimizer.scheduler: expected "),
        ({"scheduler": StepLR, "learning_rate": 1.0}, "optimizer.scheduler: torch.optim.lr_scheduler.StepLR could not"),
    ],
)
def test_combinations_that_cannot_work_are_refused_by_name(optimizer, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}") as caught:
        PPO(*SPACES, optimizer=optimizer).configure_optimizers()
    assert "\n" not in str(caught.value)


def test_the_state_of_one_optimizer_is_not_given_to_another(tmp_path):
    def fit(optimizer, epochs, ckpt_path=None):
        model, data = with_validation(optimizer={"learning_rate": 1e-2, **optimizer})
        trainer = make_trainer(max_epochs=epochs, limit_val_batches=0)
        trainer.fit(model, data, ckpt_path=ckpt_path)
        return trainer, model

    sgd = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}, "scheduler": Halving}
    trainer, _ = fit(sgd, 1)
    trainer.save_checkpoint(tmp_path / "sgd.ckpt")
    with pytest.raises(ConfigError, match=r"^optimizer.class_path: the checkpoint holds the state of torch"):
        fit({}, 2, tmp_path / "sgd.ckpt")
    with pytest.raises(ConfigError, match=r"^optimizer.scheduler: the checkpoint holds the state of tests\."):
        fit({**sgd, "scheduler": None}, 2, tmp_path / "sgd.ckpt")
    _, resumed = fit({**sgd, "class_path": SGD}, 2, tmp_path / "sgd.ckpt")
    _, straight = fit(sgd, 2)
    for one, other in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_plateau_does_not_hear_of_the_evaluation_before_training():
    model, data = with_validation(rollouts_per_epoch=2, model=configured(plateau("eval/return_mean")))
    noted = Rates()
    make_trainer(max_epochs=2, callbacks=[noted], limit_val_batches=1.0, num_sanity_val_steps=1).fit(model, data)
    # the first evaluation after training has begun is the best there is
    assert noted.seen == pytest.approx([1e-3] * 4)
