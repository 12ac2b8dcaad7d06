"""The table of docs/concepts.md against the installed Lightning: every public name, what works, what is refused."""

import csv
import importlib
import inspect
import json
import os
import re
import socket
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import environments
from pytorch_lightning import accelerators, callbacks, loggers, plugins, profilers, strategies
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, Timer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry

from lightning_ppo import PPO
from lightning_ppo.cli import train
from lightning_ppo.run import training
from lightning_ppo.run.launch import check_trainer_settings
from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.trainer_checks import check_trainer
from tests.kit.commands import SMALL
from tests.kit.paths import ROOT
from tests.kit.resuming import same
from tests.kit.training import make_trainer, with_validation


def rows() -> list[tuple[str, list[str], str]]:
    """Return kind, names and text of each row of the table."""
    text = (ROOT / "docs" / "concepts.md").read_text().split("| kind | names | |\n|---|---|---|\n")[1]
    cells = [line.strip("|").split("|") for line in text.split("\n\n")[0].splitlines()]
    return [(kind.strip(), re.findall(r"`([^`]+)`", names), said.strip()) for kind, names, said in cells]


def package() -> dict[str, set[str]]:
    """Return the public names of the installed Lightning by the kinds of the table."""
    public = set(plugins.__all__)
    kinds = {
        "precision": {name for name in public if name.endswith("Precision")},
        "checkpoint plugins": {name for name in public if name.endswith("CheckpointIO") or name == "CheckpointIO"},
        "layer plugins": {"LayerSync", "TorchSyncBatchNorm"},
    }
    assert set.union(*kinds.values()) == public
    found = vars(environments).values()
    return kinds | {
        "callbacks": set(callbacks.__all__),
        "strategies": set(strategies.__all__),
        "strategies by name": set(StrategyRegistry.available_strategies()),
        "accelerators": set(accelerators.__all__),
        "loggers": set(loggers.__all__),
        "environments": {value.__name__ for value in found if inspect.isclass(value)},
        "profilers": set(profilers.__all__),
        "Trainer flags": set(inspect.signature(pl.Trainer).parameters),
    }


@pytest.mark.parametrize("kind", sorted(package()))
def test_the_table_has_every_public_name_once_and_no_other(kind):
    named = [name for row, names, _ in rows() if row == kind for name in names]
    assert sorted(named) == sorted(package()[kind])


@pytest.fixture(autouse=True)
def no_process_group():
    """Leave the group of one that a DDP strategy starts."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fit(model_settings=None, **flags):
    """Fit a small agent and return it with its Trainer; two rollouts of 8 optimizer steps are an epoch."""
    model, data = with_validation(**(model_settings or {}))
    trainer = make_trainer(**({"limit_val_batches": 1.0} | flags))
    with warnings.catch_warnings():
        for told in (
            "schedule will be",
            "`self.log",
            "flops_per_batch",
            "called without a model",
            "no last checkpoint",
        ):
            warnings.filterwarnings("ignore", message=f"(?s).*{told}")
        trainer.fit(model, data)
    return model, trainer


# ---------------------------------------------------------------- what is refused


def bare(kind: type) -> object:
    """Return an instance of a class whose constructor needs what is not installed."""
    return object.__new__(kind)


def with_plugin(plugin: object) -> None:
    trainer = make_trainer(strategy=DDPStrategy())
    place = {"Precision": "_precision_plugin", "CheckpointIO": "_checkpoint_io", "Environment": "cluster_environment"}
    (name,) = [name for end, name in place.items() if type(plugin).__name__.endswith(end)]
    setattr(trainer.strategy, name, plugin)
    check_trainer(trainer)


def with_strategy(kind: type) -> None:
    on_a_gpu = {"root_device": torch.device("cuda"), "lightning_module": None}
    strategy = bare(type(kind.__name__, (kind,), on_a_gpu))
    trainer = make_trainer()
    trainer._accelerator_connector.strategy = strategy
    check_trainer(trainer)


def on_device(device: str) -> None:
    trainer = make_trainer()
    trainer.strategy._root_device = torch.device(device)
    check_trainer(trainer)


REFUSALS = {
    "LearningRateFinder": lambda: fit(callbacks=[callbacks.LearningRateFinder()]),
    "BatchSizeFinder": lambda: fit(callbacks=[callbacks.BatchSizeFinder()]),
    "GradientAccumulationScheduler": lambda: fit(callbacks=[callbacks.GradientAccumulationScheduler({0: 2})]),
    "BackboneFinetuning": lambda: fit(callbacks=[callbacks.BackboneFinetuning(1)]),
    "ModelPruning": lambda: fit(callbacks=[callbacks.ModelPruning("l1_unstructured", amount=0.5)]),
    "SpikeDetection": lambda: fit(callbacks=[callbacks.SpikeDetection()]),
    "StochasticWeightAveraging": lambda: fit(callbacks=[callbacks.StochasticWeightAveraging(1e-3)]),
    "FSDPStrategy": lambda: with_strategy(strategies.FSDPStrategy),
    "DeepSpeedStrategy": lambda: with_strategy(strategies.DeepSpeedStrategy),
    "MPSAccelerator": lambda: on_device("mps"),
    "XLAAccelerator": lambda: on_device("xla"),
    "gradient_clip_val": lambda: fit(gradient_clip_val=0.5),
    "gradient_clip_algorithm": lambda: fit(gradient_clip_algorithm="value"),
    "accumulate_grad_batches": lambda: fit(accumulate_grad_batches=2),
    "overfit_batches": lambda: fit(overfit_batches=1),
    "sync_batchnorm": lambda: fit(sync_batchnorm=True),
    "LayerSync": lambda: fit(plugins=[plugins.TorchSyncBatchNorm()]),
    "TorchSyncBatchNorm": lambda: fit(plugins=[plugins.TorchSyncBatchNorm()], strategy=DDPStrategy()),
    "model_registry": lambda: fit(model_registry="somebody/something"),
}
REFUSALS |= {
    name: lambda name=name: check_trainer_settings({"strategy": name})
    for name in StrategyRegistry.available_strategies()
    if not name.startswith("ddp") and name not in ("single_device", "fsdp2")
}
REFUSALS |= {
    name: lambda name=name: with_plugin(bare(getattr(plugins, name, None) or getattr(environments, name)))
    for _, names, said in rows()
    for name in names
    if said.startswith("refused") and name.endswith(("Precision", "CheckpointIO", "Environment"))
}


def test_everything_that_the_table_refuses_is_tried():
    assert sorted(REFUSALS) == sorted(name for _, names, said in rows() if said.startswith("refused") for name in names)


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_what_is_refused_ends_in_one_line_with_the_setting_to_use(name):
    (said,) = [said for _, names, said in rows() if name in names and said.startswith("refused")]
    with pytest.raises(ConfigError) as error:
        REFUSALS[name]()
    assert "\n" not in str(error.value)
    for remedy in re.findall(r"`([^`]+)`", said) or said.removeprefix("refused: ").split(", "):
        assert remedy in str(error.value)


BY_TIME = ModelCheckpoint(train_time_interval=timedelta(hours=1))


class TunesLater(callbacks.LearningRateFinder):
    def on_fit_start(self, *args):
        return


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"callbacks": [TunesLater()]}, "LearningRateFinder: .*optimizer.learning_rate"),
        ({"strategy": DDPStrategy(ddp_comm_hook=print)}, "ddp_comm_hook.*averaged here"),
        ({"strategy": strategies.ModelParallelStrategy()}, "checkpoints are whole files.*fsdp2"),
        ({"strategy": "fsdp2", "devices": 1, "model_settings": {"objective": "trpo"}}, "trpo needs all weights"),
        ({"strategy": "fsdp2", "devices": 1, "model_settings": {"compile": True}}, "compile: .*fsdp2"),
        ({"strategy": "fsdp2", "devices": 1, "callbacks": [callbacks.WeightAveraging()]}, "averages whole weights"),
        ({"strategy": DDPStrategy(model_averaging_period=4)}, "model_averaging_period.*averaged here"),
        ({"callbacks": [BY_TIME], "enable_checkpointing": True}, r"train_time_interval.*every_n_epochs"),
        ({"limit_val_batches": 0.5}, "limit_val_batches: .*evaluation.episodes"),
        ({"limit_test_batches": 0.5}, "limit_test_batches: .*evaluation.final_episodes"),
        (
            {"callbacks": [callbacks.EMAWeightAveraging(update_every_n_steps=10)]},
            "n_steps=10.*set it to 1",
        ),
        ({"precision": "bf16-true"}, "expected one of 32-true.*, got bf16-true; .* bf16-mixed keeps"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_others_of_the_kind_are_refused_too(flags, message):
    with pytest.raises(ConfigError, match=message):
        fit(**flags)


def test_tuning_by_hand_is_refused_like_its_callbacks():
    from pytorch_lightning.tuner import Tuner

    model, data = with_validation()
    with pytest.raises(ConfigError, match="LearningRateFinder: "):
        Tuner(make_trainer()).lr_find(model, datamodule=data)
    with pytest.raises(ConfigError, match="BatchSizeFinder: "):
        Tuner(make_trainer()).scale_batch_size(model, datamodule=data)


def test_a_compiled_module_is_one_line_that_names_the_setting():
    for compiled in ("torch.compile(model)", "model.compile()", "torch.compile(model.policy)"):
        for verb in ("fit", "validate"):
            given, data = model, _ = with_validation()
            if compiled == "torch.compile(model)":
                given = torch.compile(model)
            elif compiled == "model.compile()":
                model.compile()
            else:
                model.policy = torch.compile(model.policy)
            with pytest.raises(ConfigError, match=re.escape(compiled) + ".*compile=true") as error:
                getattr(make_trainer(limit_val_batches=1.0), verb)(given, data)
            assert "\n" not in str(error.value)
            if given is not model:  # which is as it was
                make_trainer().fit(model, data)


@pytest.mark.parametrize("setting", ["trainer.strategy=fsdp", "trainer.barebones=true", "trainer.plugins=a.B"])
def test_the_command_line_refuses_with_one_line(setting, capsys):
    assert train.main([setting]) == 2
    assert capsys.readouterr().err.startswith(f"error: {setting.split('=')[0]}: ")


# ---------------------------------------------------------------- what works


def rows_of(folder) -> list[dict[str, str]]:
    with open(Path(folder) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def logged(folder) -> dict:
    return {"logger": CSVLogger(folder, name="", version=""), "log_every_n_steps": 1}


def base_callback(folder):
    """Every hook that Lightning calls in manual optimisation reaches a callback."""
    called = set()
    names = [name for name in vars(Callback) if name.startswith("on_") and name != "on_before_zero_grad"]
    noting = {name: lambda self, *args, name=name, **kwargs: called.add(name) for name in names}
    model, trainer = fit(callbacks=[type("Noting", (Callback,), noting)()], num_sanity_val_steps=1)
    trainer.save_checkpoint(folder / "a.ckpt")
    data = with_validation()[1]
    trainer.fit(model, data, ckpt_path=folder / "a.ckpt", weights_only=True)
    trainer.test(model, data, verbose=False)
    trainer.predict(model, data)
    assert set(names) - called == {"on_exception"}


def checkpoint(folder):
    class Keep(callbacks.Checkpoint):
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(folder / "own.ckpt")

    model, _ = fit(callbacks=[Keep()], enable_checkpointing=True)
    assert PPO.load_from_checkpoint(folder / "own.ckpt", weights_only=True).iterations == model.iterations == 2


def model_checkpoint(folder):
    kept = [
        ModelCheckpoint(folder / "a", every_n_epochs=2, save_top_k=-1, filename="{epoch}"),
        ModelCheckpoint(folder / "b", monitor="eval/return_mean", mode="max", save_weights_only=True),
        ModelCheckpoint(folder / "d", save_last="link", save_on_train_epoch_end=True),
    ]
    model, _ = fit(max_epochs=4, callbacks=kept, enable_checkpointing=True)
    assert sorted(os.listdir(folder / "a")) == ["epoch=1.ckpt", "epoch=3.ckpt"]
    loaded = PPO.load_from_checkpoint(kept[1].best_model_path, weights_only=True)
    assert 0 < loaded.iterations <= model.iterations
    assert same(PPO.load_from_checkpoint(folder / "d" / "last.ckpt").state_dict(), model.state_dict())


def lambda_callback(folder):
    steps = []
    fit(callbacks=[callbacks.LambdaCallback(on_before_optimizer_step=lambda *args: steps.append(1))])
    assert len(steps) == 2 * 8


def timer(folder):
    clock = Timer({"hours": 1})
    fit(callbacks=[clock])
    assert 0.0 < clock.time_elapsed("train") < 600 and clock.time_elapsed("validate") > 0.0


def on_exception_checkpoint(folder):
    class Fails(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if module.iterations == 2:
                raise KeyError("stop here")

    with pytest.raises(KeyError, match="stop here"):
        fit(callbacks=[callbacks.OnExceptionCheckpoint(folder), Fails()], enable_checkpointing=True)
    assert PPO.load_from_checkpoint(folder / "on_exception.ckpt", weights_only=True).iterations == 2


def prediction_writer(folder):
    class Write(callbacks.BasePredictionWriter):
        def write_on_epoch_end(self, trainer, module, predictions, batch_indices):
            torch.save(predictions, folder / "actions.pt")

    model, data = with_validation("Pendulum-v1")
    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):
        make_trainer(callbacks=[Write("epoch")]).predict(model, data)
    assert torch.load(folder / "actions.pt")[0].shape == (2, 1)


def model_summary(folder, kind=callbacks.ModelSummary):
    class Keep(kind):
        @staticmethod
        def summarize(summary_data, total_parameters, trainable_parameters, *args, **kwargs):
            totals.append((total_parameters, trainable_parameters))

    totals = []
    model, _ = fit(callbacks=[Keep()], enable_model_summary=True)
    assert totals == [(sum(p.numel() for p in model.parameters()),) * 2]


def tqdm_bar(folder, kind=callbacks.TQDMProgressBar):
    bar = kind()
    _, trainer = fit(callbacks=[bar], enable_progress_bar=True)
    assert trainer.progress_bar_callback is bar and bar.total_train_batches == 2
    (folder / "run").mkdir()
    config = load([], [*SMALL, "total_env_steps=128", "trainer.enable_progress_bar=true"])
    built = training.build_trainer(config, folder / "run", Callback(), with_validation()[0], None, [bar])
    assert built.progress_bar_callback is bar


def rich(name):
    def try_it(folder):
        pytest.importorskip("rich", reason="needs rich")
        (tqdm_bar if "Bar" in name else model_summary)(folder, getattr(callbacks, name))

    return try_it


def finetuning(folder):
    class Frozen(callbacks.BaseFinetuning):
        def freeze_before_training(self, module):
            self.freeze(module.policy.network.actor_trunk)

        def finetune_function(self, module, epoch, optimizer):
            weights.append(module.policy.network.actor_trunk.mlp[0].weight.detach().clone())
            if epoch == 2:
                self.make_trainable(module.policy.network.actor_trunk)

    weights = []
    fit(max_epochs=4, callbacks=[Frozen()])
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[2], weights[3])


def throughput(folder):
    def size(batch):
        return len(batch.returns) if hasattr(batch, "lengths") else batch.num_steps * batch.num_envs

    fit(callbacks=[callbacks.ThroughputMonitor(size, window_size=2)], max_epochs=2, **logged(folder))
    assert max(float(row["train/device/samples_per_sec"] or 0) for row in rows_of(folder)) > 0


def weight_averaging(folder, kind=callbacks.WeightAveraging, **settings):
    """The final agent is the average, evaluations are of the average, and a resumed run goes on exactly."""

    class Record(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen.append({name: value.clone() for name, value in module.named_parameters()})

    def run(stop=None, path=None):
        class Stop(Callback):
            def on_train_epoch_end(self, trainer, module):
                if trainer.current_epoch + 1 == stop:
                    trainer.save_checkpoint(folder / "half.ckpt")
                    trainer.should_stop = True

        model, data = with_validation()
        trainer = make_trainer(max_epochs=3, callbacks=[kind(**settings), Record(), Stop()])
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
        return model

    seen = []
    model = run()
    average = {name: value.clone() for name, value in seen[0].items()}
    for count, weights in enumerate(seen[1:], start=1):
        for name, value in weights.items():
            share = 1 - settings["decay"] if settings else 1 / (count + 1)
            average[name].lerp_(value, share)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)
    run(stop=2)
    assert same(run(path=folder / "half.ckpt").state_dict(), model.state_dict())


def single_device(folder):
    _, trainer = fit(devices=1)
    assert isinstance(trainer.strategy, strategies.SingleDeviceStrategy)


def one_rank(plugin=None, **variables):
    """Fit in a process group of one, which an environment describes."""

    def try_it(folder):
        with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
            free.bind(("", 0))
            port = str(free.getsockname()[1])
            free.close()
            for name, value in (variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
                patch.setenv(name, value)
            given = None if plugin is None else plugin(folder, patch)
            model, trainer = fit(strategy=DDPStrategy(cluster_environment=given), devices=1)
            assert model.iterations == 2 and trainer.world_size == 1
            assert given is None or trainer.strategy.cluster_environment is given

    return try_it


def lsf(folder, patch):
    (folder / "hosts").write_text("launch\n127.0.0.1\n")
    patch.setenv("LSB_DJOB_RANKFILE", str(folder / "hosts"))
    patch.setattr(environments.LSFEnvironment, "_get_node_rank", lambda self: 0)
    return environments.LSFEnvironment()


def csv_logger(folder):
    fit({"env": "Pendulum-v1"}, **logged(folder))
    assert [row["step"] for row in rows_of(folder) if row["update/kl"]] == ["64", "128"]


def own_logger(folder):
    class Own(loggers.Logger):
        name = version = "own"

        def log_metrics(self, metrics, step=None):
            steps.append(step)

        def log_hyperparams(self, *args, **kwargs):
            raise AssertionError

    steps = []
    fit({"env": "Pendulum-v1"}, logger=Own(), log_every_n_steps=1, enable_autolog_hparams=False)
    assert steps == [64, 128, 128]


def precision(name):
    def try_it(folder):
        model, _ = fit(precision=name)
        kinds = {p.dtype for p in model.parameters()}
        assert kinds == {torch.float64 if name == "64-true" else torch.float32}

    return try_it


def async_io(folder):
    model, trainer = fit(plugins=[plugins.AsyncCheckpointIO(plugins.TorchCheckpointIO())])
    trainer.save_checkpoint(folder / "agent.ckpt")
    trainer.strategy.checkpoint_io.teardown()
    assert same(PPO.load_from_checkpoint(folder / "agent.ckpt", weights_only=True).state_dict(), model.state_dict())


def profiler(kind):
    def try_it(folder):
        given = getattr(profilers, kind)
        fit(profiler=given() if kind == "PassThroughProfiler" else given(dirpath=folder, filename="found"))
        assert kind == "PassThroughProfiler" or any("run_training_batch" in p.read_text() for p in folder.glob("*.txt"))

    return try_it


def same_as_without(**flags):
    def try_it(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "benchmark", False)
            model, _ = fit(max_epochs=2, **flags)
            torch.use_deterministic_algorithms(False)
        assert same(model.state_dict(), fit(max_epochs=2)[0].state_dict())

    return try_it


def deterministic(folder):
    class See(Callback):
        def on_train_start(self, *args):
            seen.append(torch.are_deterministic_algorithms_enabled())

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        fit(deterministic=True, callbacks=[See()])
    torch.use_deterministic_algorithms(False)
    assert seen == [True]


def detect_anomaly(folder):
    class See(PPO):
        def value_loss(self, values, minibatch):
            assert torch.is_anomaly_enabled()
            return super().value_loss(values, minibatch)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Anomaly Detection")
        assert fit({"model": See}, detect_anomaly=True)[0].iterations == 2


def inference_mode(folder):
    class See(PPO):
        def validation_step(self, *args):
            seen.append(torch.is_inference_mode_enabled())
            super().validation_step(*args)

    seen = []
    for mode in (True, False):
        model, data = with_validation(model=See)
        make_trainer(inference_mode=mode, limit_val_batches=1.0).validate(model, data, verbose=False)
    assert seen == [True, False]


class Evaluations(Callback):
    """Notes after which iterations an agent is evaluated."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, module):
        self.seen.append(module.iterations)


def evaluated(expected, **flags):
    def try_it(folder):
        notes = Evaluations()
        fit(callbacks=[notes], **flags)
        assert notes.seen == expected

    return try_it


def counted(iterations, **flags):
    def try_it(folder):
        assert fit(**flags)[0].iterations == iterations

    return try_it


class StopsAtOnce(Callback):
    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = True


def log_every(folder):
    fit({"env": "Pendulum-v1"}, max_epochs=2, logger=CSVLogger(folder, name="", version=""), log_every_n_steps=2)
    assert [row["step"] for row in rows_of(folder) if row["update/kl"]] == ["128", "256"]


def default_root_dir(folder):
    fit(default_root_dir=folder, enable_checkpointing=True)
    assert [path.suffix for path in (folder / "checkpoints").iterdir()] == [".ckpt"]


def autolog(folder):
    """Who asks for no settings in the loggers gets none."""
    for flag in ("true", "false"):
        run = folder / flag
        entry = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(run / "more")}}
        arguments = [*SMALL, "total_env_steps=64", f"trainer.enable_autolog_hparams={flag}", f"run_dir={run}"]
        training.train(load([], [*arguments, f"loggers=[{json.dumps(entry)}]"]))
        found = [file.read_text() for file in (run / "more").rglob("hparams.yaml")]
        assert any("total_env_steps" in text for text in found) == (flag == "true")


def barebones(folder):
    nothing = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    model, trainer = fit(barebones=True, num_sanity_val_steps=None, **nothing)
    assert model.iterations == 2 and not trainer.callback_metrics


def limited(stage):
    def try_it(folder):
        model, data = with_validation()
        for limit, episodes in ((0, None), (1.0, 3 if stage == "test" else 2)):
            trainer = make_trainer(**{f"limit_{stage}_batches": limit})
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*Total length.*zero")
                (trainer.test if stage == "test" else trainer.validate)(model, data, verbose=False)
            prefix = "test" if stage == "test" else "eval"
            assert trainer.callback_metrics.get(f"{prefix}/episodes") == episodes

    return try_it


def limit_predict(folder):
    model, data = with_validation()
    assert len(make_trainer(limit_predict_batches=1).predict(model, data)) == 1


KUBEFLOW = {"RANK": "0", "WORLD_SIZE": "1"}
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "1"}
LSF = {"LSB_JOBID": "1", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "1", "JSM_NAMESPACE_RANK": "0"}
TWO_RANKS = "whole/test_distributed.py::test_two_ranks_equal_one"
EVERY_LOGGER = "run/test_loggers.py::test_every_logger_gets_the_settings_and_curves_against_env_steps"
BUDGET = "update/test_budget.py::test_schedules_end_with_the_limit_that_comes_first"

EFFECTS = {
    "Callback": base_callback,
    "Checkpoint": checkpoint,
    "DeviceStatsMonitor": "run/test_lightning.py::test_device_stats_monitor_and_simple_profiler",
    "EarlyStopping": "run/test_lightning.py::test_early_stopping_on_the_evaluation_return",
    "LambdaCallback": lambda_callback,
    "LearningRateMonitor": "run/test_lightning.py::test_learning_rate_monitor_logs_the_rate_in_use",
    "ModelSummary": model_summary,
    "OnExceptionCheckpoint": on_exception_checkpoint,
    "BasePredictionWriter": prediction_writer,
    "Timer": timer,
    "ModelCheckpoint": model_checkpoint,
    "ProgressBar": "cli/test_cli.py::test_curves_are_logged_against_env_steps",
    "TQDMProgressBar": tqdm_bar,
    "RichModelSummary": rich("RichModelSummary"),
    "RichProgressBar": rich("RichProgressBar"),
    "BaseFinetuning": finetuning,
    "ThroughputMonitor": throughput,
    "WeightAveraging": weight_averaging,
    "EMAWeightAveraging": lambda folder: weight_averaging(folder, callbacks.EMAWeightAveraging, decay=0.7),
    "SingleDeviceStrategy": single_device,
    "single_device": single_device,
    "DDPStrategy": one_rank(),
    "ddp": TWO_RANKS,
    **dict.fromkeys(
        ("ModelParallelStrategy", "fsdp2"), "whole/test_sharding.py::test_ranks_that_share_weights_out_equal_one"
    ),
    **{name: counted(2, strategy=name, devices=1) for name in StrategyRegistry if re.match("ddp_find", name)},
    "Accelerator": single_device,
    "CPUAccelerator": single_device,
    "CUDAAccelerator": "speed/test_graphs.py::test_compiled_and_recorded_training_learns_the_same",
    "find_usable_cuda_devices": "speed/test_graphs.py::test_compiled_and_recorded_training_learns_the_same",
    "Logger": own_logger,
    "CSVLogger": csv_logger,
    "TensorBoardLogger": "run/test_loggers.py::test_csv_and_tensorboard_are_there_without_asking",
    "WandbLogger": "run/test_loggers.py::test_wandb_offline",
    "MLFlowLogger": "run/test_loggers.py::test_mlflow_without_a_server",
    "CometLogger": EVERY_LOGGER,
    "LitLogger": EVERY_LOGGER,
    "Precision": precision("32-true"),
    "DoublePrecision": precision("64-true"),
    "MixedPrecision": precision("bf16-mixed"),
    "CheckpointIO": async_io,
    "TorchCheckpointIO": async_io,
    "AsyncCheckpointIO": async_io,
    "ClusterEnvironment": one_rank(),
    "LightningEnvironment": one_rank(),
    "TorchElasticEnvironment": one_rank(lambda *_: environments.TorchElasticEnvironment(), **TORCHRUN),
    "SLURMEnvironment": one_rank(lambda *_: environments.SLURMEnvironment(auto_requeue=False), **SLURM),
    "KubeflowEnvironment": one_rank(lambda *_: environments.KubeflowEnvironment(), **KUBEFLOW),
    "LSFEnvironment": one_rank(lsf, **LSF),
    "Profiler": profiler("SimpleProfiler"),
    **{f"{name}Profiler": profiler(f"{name}Profiler") for name in ("Advanced", "PassThrough", "PyTorch", "Simple")},
    "callbacks": lambda_callback,
    "logger": csv_logger,
    "log_every_n_steps": log_every,
    "enable_checkpointing": default_root_dir,
    "enable_progress_bar": tqdm_bar,
    "enable_model_summary": model_summary,
    "enable_autolog_hparams": autolog,
    "default_root_dir": default_root_dir,
    "profiler": profiler("SimpleProfiler"),
    "deterministic": deterministic,
    "benchmark": same_as_without(benchmark=True),
    "detect_anomaly": detect_anomaly,
    "inference_mode": inference_mode,
    "num_sanity_val_steps": evaluated([0, 2], num_sanity_val_steps=1),
    "reload_dataloaders_every_n_epochs": same_as_without(reload_dataloaders_every_n_epochs=1),
    "accelerator": single_device,
    "strategy": single_device,
    "devices": TWO_RANKS,
    "num_nodes": "whole/test_multinode.py::test_two_hosts_train_together",
    "precision": precision("64-true"),
    "plugins": async_io,
    "max_epochs": counted(6, max_epochs=3),
    "max_steps": BUDGET,
    "max_time": "update/test_budget.py::test_schedules_end_with_the_time",
    "min_epochs": counted(4, max_epochs=9, min_epochs=2, callbacks=[StopsAtOnce()]),
    "min_steps": counted(5, max_epochs=9, min_steps=40, callbacks=[StopsAtOnce()]),
    "fast_dev_run": "update/test_budget.py::test_fast_dev_run_makes_as_many_rollouts_and_evaluates",
    "limit_train_batches": counted(3, max_epochs=3, limit_train_batches=1),
    "val_check_interval": evaluated([1, 2, 3, 4], max_epochs=2, val_check_interval=1),
    "check_val_every_n_epoch": evaluated([4, 8], max_epochs=4, check_val_every_n_epoch=2),
    "limit_val_batches": limited("val"),
    "limit_test_batches": limited("test"),
    "limit_predict_batches": limit_predict,
    "barebones": barebones,
    "use_distributed_sampler": same_as_without(use_distributed_sampler=False),
}
LAUNCHED = [name for name in StrategyRegistry.available_strategies() if re.match("ddp_(spawn|fork|notebook)", name)]
"""Strategies that start the processes of a fit from this one, by spawning or forking."""
EFFECTS |= dict.fromkeys(
    LAUNCHED, "whole/test_copies.py::test_processes_that_a_trainer_launches_report_to_their_parent"
)

NOT_TRIED = {"Strategy", "ParallelStrategy", "XLAProfiler"}


def test_everything_that_the_table_says_works_is_tried():
    working = {name for _, names, said in rows() for name in names if not said.startswith("refused")}
    assert working == set(EFFECTS) | NOT_TRIED
    for test in {test for test in EFFECTS.values() if isinstance(test, str)}:
        file, name = test.split("::")
        assert hasattr(importlib.import_module(f"tests.{file.removesuffix('.py').replace('/', '.')}"), name), test


@pytest.mark.parametrize("name", sorted(name for name, effect in EFFECTS.items() if callable(effect)))
def test_what_works_has_its_effect(name, tmp_path):
    EFFECTS[name](tmp_path)


# ---------------------------------------------------------------- hooks


class Zeroes(Callback):
    def on_before_zero_grad(self, *args):
        raise AssertionError


class Looks(Callback):
    def on_after_backward(self, *args):
        raise AssertionError


class OwnStep(PPO):
    def optimizer_step(self, *args, **kwargs):
        raise AssertionError


def test_hooks_that_are_never_called_are_named_once():
    with pytest.warns(UserWarning) as told:
        fit({"model": OwnStep}, callbacks=[Zeroes(), callbacks.LambdaCallback(on_before_zero_grad=print)])
    said = [str(warning.message).split(" is never called")[0] for warning in told if "never called" in str(warning)]
    assert said == ["OwnStep.optimizer_step", "Zeroes.on_before_zero_grad", "LambdaCallback.on_before_zero_grad"]
    model, data = with_validation(objective="trpo")
    with pytest.warns(UserWarning, match=r"Looks.on_after_backward is never called by PPO with objective=trpo"):
        make_trainer(callbacks=[Looks()]).fit(model, data)


def test_a_signal_saves_what_callbacks_made_of_the_iteration(tmp_path):
    """The callbacks of the user come before what saves."""
    model, _ = with_validation()
    config = load([], [*SMALL, "total_env_steps=128"])
    own = Callback()
    order = training.build_trainer(config, tmp_path, Callback(), model, None, [own]).callbacks
    (stop,) = [index for index, callback in enumerate(order) if type(callback).__name__ == "GracefulStop"]
    assert order.index(own) < stop
