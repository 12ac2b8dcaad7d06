"""What Lightning users know works as they know it: callbacks, flags, hooks, loggers, validate, test, predict."""

import csv
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.run import training
from lightning_ppo.run.loggers import MetricsCSV
from lightning_ppo.settings.loading import load
from lightning_ppo.speed import shortcuts as module
from tests.kit.commands import SMALL
from tests.kit.training import Recording, make_pair, make_trainer, with_validation


def test_early_stopping_on_the_evaluation_return():
    model, data = with_validation()
    stop = EarlyStopping("eval/return_mean", mode="max", stopping_threshold=1.0)
    make_trainer(max_epochs=50, limit_val_batches=1.0, callbacks=[stop]).fit(model, data)
    assert model.iterations == 2  # the first evaluation already returns more than 1
    assert stop.stopped_epoch == 0


def test_early_stopping_on_a_training_metric():
    model, data = with_validation()
    stop = EarlyStopping("rollout/return_mean", mode="max", patience=2, check_on_train_epoch_end=True, min_delta=1e9)
    make_trainer(max_epochs=50, callbacks=[stop]).fit(model, data)
    assert model.iterations == 2 * 3  # one epoch to set the mark, two of patience


def test_model_checkpoint_keeps_the_best_and_the_last(tmp_path):
    model, data = with_validation()
    keep = ModelCheckpoint(tmp_path, monitor="eval/return_mean", mode="max", save_top_k=1, save_last=True)
    trainer = make_trainer(max_epochs=4, limit_val_batches=1.0, callbacks=[keep], enable_checkpointing=True)
    trainer.fit(model, data)
    assert (tmp_path / "last.ckpt").exists()
    loaded = PPO.load_from_checkpoint(keep.best_model_path, weights_only=True)
    (again,) = make_trainer(limit_val_batches=1.0).validate(loaded, with_validation()[1], verbose=False)
    assert again["eval/return_mean"] == pytest.approx(float(keep.best_model_score))


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
def test_model_checkpoint_every_n_train_steps_on_a_multiple(tmp_path):
    model, data = with_validation()  # 2 epochs x 4 minibatches = 8 optimizer steps per iteration
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=16, save_top_k=-1, filename="{step}")
    make_trainer(max_epochs=2, callbacks=[keep], enable_checkpointing=True).fit(model, data)
    saved = [torch.load(p, weights_only=True) for p in tmp_path.iterdir()]
    assert sorted(s["global_step"] for s in saved) == [16, 32]
    # Lightning's {step} is the x-axis of the logs, here environment steps
    assert sorted(p.stem for p in tmp_path.iterdir()) == sorted(f"step={s['ppo']['env_steps']}" for s in saved)


def test_learning_rate_monitor_logs_the_rate_in_use(tmp_path):
    model, data = with_validation(optimizer={"learning_rate": {"kind": "linear", "start": 1e-3, "end": 0.0}})
    logger = CSVLogger(tmp_path, name="", version="")
    callbacks = [LearningRateMonitor(logging_interval="step")]
    make_trainer(max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=callbacks).fit(model, data)
    with open(tmp_path / "metrics.csv") as file:
        rates = [float(row["lr-Adam"]) for row in csv.DictReader(file) if row.get("lr-Adam")]
    # the callback looks at the start of a batch, before the update sets the rate of its own iteration
    assert rates == pytest.approx([1e-3, 1e-3, 7.5e-4, 5e-4])


def test_device_stats_monitor_and_simple_profiler(tmp_path):
    pytest.importorskip("psutil", reason="DeviceStatsMonitor needs psutil for the CPU")
    model, data = with_validation()
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = make_trainer(
        logger=logger, log_every_n_steps=1, profiler="simple", callbacks=[DeviceStatsMonitor(cpu_stats=True)]
    )
    trainer.fit(model, data)
    assert "cpu_percent" in (tmp_path / "metrics.csv").read_text()
    assert "run_training_batch" in trainer.profiler.summary()


def test_fast_dev_run_is_one_rollout_and_one_evaluation():
    model, data = with_validation()
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, data)
    assert model.iterations == 1 and "eval/return_mean" in trainer.callback_metrics


def test_max_time_ends_training():
    model, data = with_validation(rollouts_per_epoch=1)
    trainer = make_trainer(max_epochs=-1, max_time={"seconds": 1})
    trainer.fit(model, data)
    assert model.iterations > 1


def test_max_steps_counts_optimizer_steps():
    model, data = with_validation()
    trainer = make_trainer(max_epochs=-1, max_steps=24)
    trainer.fit(model, data)
    assert (trainer.global_step, model.iterations) == (24, 3)


def test_should_stop_is_honoured_after_the_iteration():
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if module.iterations == 3:
                trainer.should_stop = True

    model, data = with_validation(rollouts_per_epoch=10)
    trainer = make_trainer(max_epochs=5, callbacks=[Stop()])
    trainer.fit(model, data)
    assert (model.iterations, trainer.current_epoch) == (3, 1)


def test_fitting_twice_goes_on():
    model, data = with_validation()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, data)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, data)
    assert (trainer.current_epoch, model.iterations, trainer.global_step) == (3, 6, 48)


def test_validate_test_and_predict():
    model, data = with_validation("Pendulum-v1")
    trainer = make_trainer(limit_val_batches=1.0)
    (validated,) = trainer.validate(model, data, verbose=False)
    assert validated["eval/episodes"] == 2 and validated["eval/length_mean"] == 200
    (tested,) = trainer.test(model, data, verbose=False)
    assert tested["test/episodes"] == 3 and tested["test/return_mean"] < 0
    (actions,) = trainer.predict(model, data)
    assert actions.shape == (2, 1) and actions.abs().max() <= 2.0
    observations = torch.randn(7, 3)
    batches = trainer.predict(model, DataLoader(observations, batch_size=4, num_workers=0))
    torch.testing.assert_close(torch.cat(batches), model.policy.predict(observations)[0])


def test_sanity_check_is_short_and_changes_nothing():
    weights = []
    for steps in (0, 2):
        model, data = with_validation()
        make_trainer(limit_val_batches=1.0, num_sanity_val_steps=steps).fit(model, data)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_frozen_submodule_stays_in_eval_mode_after_evaluating():
    model, data = with_validation()
    model.policy.network.actor_trunk.mlp[0].eval()
    make_trainer(limit_val_batches=1.0).validate(model, data, verbose=False)
    assert not model.policy.network.actor_trunk.mlp[0].training
    assert model.policy.network.critic_trunk.mlp[0].training


def test_hooks_come_in_lightnings_order():
    seen = []

    def note(name):
        def hook(self, *args, **kwargs):
            seen.append(name)
            return getattr(super(Noting, self), name)(*args, **kwargs)

        return hook

    names = [
        "setup",
        "on_fit_start",
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_before_optimizer_step",
        "on_train_batch_end",
        "on_validation_epoch_start",
        "validation_step",
        "on_validation_epoch_end",
        "on_train_epoch_end",
        "on_train_end",
        "on_fit_end",
    ]
    Noting = type("Noting", (PPO,), {})
    for name in names:
        setattr(Noting, name, note(name))
    pl.seed_everything(3, verbose=False)
    data = RolloutDataModule(
        "CartPole-v1", num_envs=4, num_steps=16, rollouts_per_epoch=2, evaluation={"episodes": 1, "num_envs": 1}
    )
    model = Noting(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 32})
    make_trainer(limit_val_batches=1.0).fit(model, data)
    batch = ["on_train_batch_start", "on_before_optimizer_step", "on_before_optimizer_step", "on_train_batch_end"]
    validation = ["on_validation_epoch_start", "validation_step", "on_validation_epoch_end"]
    assert seen == [
        *("setup", "on_fit_start", "on_train_start", "on_train_epoch_start"),
        *batch,
        *batch,
        *validation,
        *("on_train_epoch_end", "on_train_end", "on_fit_end"),
    ]


def test_gradients_are_fresh_for_every_step():
    """Gradients must not add up: each step's norm is that of its own minibatch."""
    model, data = make_pair(model=Recording, update={"epochs": 6, "minibatch_size": 64})
    norms = []

    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])))

    make_trainer(callbacks=[Norms()]).fit(model, data)
    assert len(norms) == 6 and max(norms) < 4 * min(norms)


class CountingCallback(pl.Callback):
    """Named in a config by class path."""

    instances: ClassVar[list["CountingCallback"]] = []

    def __init__(self, start: int = 0) -> None:
        self.count = start
        CountingCallback.instances.append(self)

    def on_train_batch_end(self, *args):
        self.count += 1


def test_callbacks_loggers_and_trainer_flags_from_yaml(tmp_path):
    CountingCallback.instances.clear()
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
callbacks:
  - tests.run.test_lightning.CountingCallback
  - class_path: tests.run.test_lightning.CountingCallback
    init_args: {{start: 10}}
loggers:
  - class_path: pytorch_lightning.loggers.CSVLogger
    init_args: {{save_dir: {tmp_path}, name: extra, version: ""}}
trainer:
  max_epochs: 1
"""
    )
    training.train(load([path], [*SMALL, f"run_dir={tmp_path / 'run'}"]))
    assert [c.count for c in CountingCallback.instances] == [2, 12]
    assert (tmp_path / "extra" / "metrics.csv").exists()


def test_three_fits_leave_nothing_behind():
    import gc

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    counts = []
    for _ in range(4):
        model, data = with_validation()
        make_trainer(limit_val_batches=1.0).fit(model, data)
        del model, data
        counts.append(tensors())
    assert counts[3] == counts[1]


def test_metrics_csv_adds_columns_as_they_appear(tmp_path):
    steps = iter((10, 20, 30, 25))
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path, lambda: next(steps))
    logger.log_metrics({"a": 1.0}, 1)  # the x-axis is env steps whatever a callback counts
    logger.log_metrics({"a": 2.0, "b": 3.0, "epoch": 0}, 2)
    logger.log_metrics({"b": 4.0}, 3)
    assert path.read_text().split() == ["step,a,b", "10,1.0,", "20,2.0,3.0", "30,,4.0"]
    MetricsCSV(path, lambda: next(steps), resume_step=20).log_metrics({"c": 5.0}, 4)
    assert path.read_text().split() == ["step,a,b,c", "10,1.0,,", "20,2.0,3.0,", "25,,,5.0"]


@pytest.mark.parametrize("every", [1, 3])
def test_metrics_reach_everybody_as_they_do_through_log_dict(every, monkeypatch):
    """Also where a subclass logs of its own, after ours, and in the first iteration of each epoch."""

    class Talkative(PPO):
        def training_step(self, rollout, batch_idx):
            super().training_step(rollout, batch_idx)
            self.log("mine", float(batch_idx), on_step=False, on_epoch=True, batch_size=1)

    class Seen(pl.Callback):
        def __init__(self):
            self.callback, self.logged = [], []

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.callback.append({k: float(v) for k, v in trainer.callback_metrics.items()})

        def on_train_epoch_end(self, trainer, module):
            self.callback.append({k: float(v) for k, v in trainer.callback_metrics.items()})
            self.logged.append({k: float(v) for k, v in trainer.logged_metrics.items()})

    class Written(CSVLogger):
        def log_metrics(self, metrics, step=None):
            written.append({"step": step, **metrics})

    found = []
    for way in (module.log_metrics, lambda m, metrics: m.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)):
        monkeypatch.setattr(module, "log_metrics", way)
        written, seen = [], Seen()
        model, data = with_validation(rollouts_per_epoch=3, model=Talkative)
        kwargs = {"max_epochs": 3, "limit_val_batches": 1.0, "log_every_n_steps": every}
        make_trainer(logger=Written("."), callbacks=[seen], **kwargs).fit(model, data)
        rows = [*written, *seen.callback, *seen.logged]
        found.append([{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows])
    assert found[0] == found[1] and len(found[0]) >= 3 + 12 + 3
    assert {"update/kl", "rollout/policy_lag", "mine", "eval/return_mean"} <= found[0][-1].keys()


def test_a_module_that_logs_in_its_own_way_gets_every_metric():
    class Own(PPO):
        def log_dict(self, dictionary, **kwargs):
            names.append(set(dictionary))
            super().log_dict(dictionary, **kwargs)

    names = []
    model, data = with_validation(model=Own)
    make_trainer(max_epochs=2).fit(model, data)
    assert len(names) == 4 and all({"update/kl", "loss/policy", "step"} <= seen for seen in names)
