"""The optimizers of a fit: made from settings, read on their way to Lightning, checked, their schedulers stepped."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer

from lightning_ppo.settings.algorithm import OPTIMIZERS, SCHEDULERS, OptimizerConfig
from lightning_ppo.settings.class_path import class_path_of
from lightning_ppo.settings.schedules import Schedule
from lightning_ppo.speed.internals import check_attached, latest_metrics, read_optimizers
from lightning_ppo.support.distributed import mean_over_ranks
from lightning_ppo.support.errors import ConfigError, one_line
from lightning_ppo.update.learning_rate import SteeredLearningRate
from lightning_ppo.update.parameter_groups import NamedParameters, check_options, make_groups, split
from lightning_ppo.update.scheduler_steps import is_due_after_epoch, is_due_after_iteration, make_step, try_out


def make_optimizer(settings: OptimizerConfig, named: NamedParameters, plain: bool) -> dict[str, Any]:
    """Return, as `configure_optimizers` does, the optimizer that settings name and the scheduler of its learning rate.

    Args:
        settings: Of the optimizer.
        named: The parameters to train, by name.
        plain: Whether Adam is torch's own.

    Raises:
        ConfigError: If one of them cannot be built.
    """
    rate = settings.schedule()(0.0)
    parameters = make_groups(named, settings, rate)
    if settings.class_path in OPTIMIZERS:
        betas = (settings.betas[0], settings.betas[1])
        path = "torch.optim.Adam" if plain else settings.class_path
        optimizer = OPTIMIZERS.instantiate(path, parameters, lr=rate, betas=betas, eps=settings.epsilon)
    else:
        entry = {"class_path": settings.class_path, "init_args": settings.init_args}
        optimizer = OPTIMIZERS.instantiate(entry, parameters, lr=rate)
    check_options(optimizer, settings)
    if settings.scheduler is None:
        factors = [group["lr"] / rate if rate else 1.0 for group in optimizer.param_groups]
        # named as LearningRateMonitor names torch's Adam
        name = "Adam" if settings.class_path in OPTIMIZERS else type(optimizer).__name__
        scheduler = {"scheduler": SteeredLearningRate(optimizer, rate, factors), "name": f"lr-{name}"}
    else:
        given = settings.scheduler if isinstance(settings.scheduler, Mapping) else {}
        when = {key: value for key, value in given.items() if key not in ("class_path", "init_args")}
        scheduler = {"scheduler": SCHEDULERS.instantiate(settings.scheduler, optimizer), **when}
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def check_same_kind(saved: Mapping[str, Any], settings: OptimizerConfig) -> None:
    """Raise ConfigError if the state of the optimizer or scheduler of a checkpoint is one of another class.

    Args:
        saved: Settings of the `optimizer` section in the checkpoint.
        settings: Those of the fit that resumes.
    """
    before = {"class_path": "adam", "scheduler": None, "groups": []} | dict(saved)
    if split(before["groups"]) != split(settings.groups):
        raise ConfigError(
            "optimizer.groups: the checkpoint holds the state of other groups; only factors above 0 and init_args may "
            "change, or start a new run"
        )
    for name, now in (("class_path", settings.class_path), ("scheduler", settings.scheduler)):
        then = class_path_of(before[name])
        if _class_name(then) != _class_name(class_path_of(now)):
            raise ConfigError(
                f"optimizer.{name}: the checkpoint holds the state of {then or 'a steered learning rate'}, which fits "
                "no other; keep it, or start a new run"
            )


def _class_name(path: Any) -> str:
    """Return a name that the two paths of one class, and `adam` and `torch.optim.Adam`, have in common."""
    return str(path).rpartition(".")[2].lower()


class Optimizers:
    """The optimizers of a fit and the schedulers of their learning rates.

    Schedulers other than those that PPO steers are stepped after every iteration or, with `interval="epoch"`, after
    every epoch, and each `frequency`-th time only. Those that monitor a metric are stepped where it becomes known.

    Attributes:
        optimizers: Over disjoint parameters; none outside a fit.
        steered: The schedulers that PPO steers.

    Args:
        optimizers: As `configure_optimizers` made them.
        configs: Their schedulers.
    """

    def __init__(self, optimizers: Sequence[Optimizer] = (), configs: Sequence[LRSchedulerConfig] = ()) -> None:
        self.optimizers = list(optimizers)
        self.steered = [c.scheduler for c in configs if isinstance(c.scheduler, SteeredLearningRate)]
        self._configs = [c for c in configs if not isinstance(c.scheduler, SteeredLearningRate)]
        for scheduler in self.steered:
            scheduler.keep_proportions()
        self._factors = [list(scheduler.factors) for scheduler in self.steered]
        self._settings = [[_settings(group) for group in s.optimizer.param_groups] for s in self.steered]
        self._stepped: set[int] = set()

    @property
    def monitors(self) -> list[str]:
        """The metrics that schedulers wait for."""
        return [str(config.monitor) for config in self._configs if config.reduce_on_plateau]

    def use_settings(self) -> None:
        """Use the settings of steered optimizers; loading a checkpoint has brought back those that were saved."""
        for scheduler, settings, factors in zip(self.steered, self._settings, self._factors, strict=True):
            scheduler.use_factors(factors)
            for group, own in zip(scheduler.optimizer.param_groups, settings, strict=True):
                group.update(own)

    def try_schedulers(self, module: pl.LightningModule, iterations: int | None) -> None:
        """Raise ConfigError if a scheduler cannot take the steps of a fit of so many iterations; None is unknown."""
        if iterations:
            for config in self._configs:
                try_out(module, config, iterations)

    def set_rates(self, schedule: Schedule, progress: float) -> None:
        """Set the learning rates of an iteration."""
        for scheduler in self.steered:
            scheduler.follow(schedule, progress)

    def steer_rates(self, schedule: Schedule, progress: float, kl: float) -> None:
        """Let the learning rates follow the KL divergence of an iteration."""
        for scheduler in self.steered:
            scheduler.finish(schedule, progress, kl)

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each optimizer, by the name it is logged under."""
        rates = [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers]
        return {f"update/learning_rate{f'_{n}' if n > 1 else ''}": rate for n, rate in enumerate(rates, 1)}

    def after_iteration(self, module: pl.LightningModule, metrics: Mapping[str, float]) -> None:
        """Step the schedulers that are due at the end of an iteration, given its metrics."""
        self._stepped.clear()
        for config in self._configs:
            if not config.reduce_on_plateau and is_due_after_iteration(module, config):
                make_step(module, config, None)
        self._step_on(module, metrics, of_iteration=True)

    def after_logging(self, module: pl.LightningModule) -> None:
        """Step schedulers that monitor a metric logged elsewhere in an iteration."""
        if self.monitors:
            self._step_on(module, latest_metrics(module.trainer), of_iteration=True)

    def after_evaluation(self, module: pl.LightningModule) -> None:
        """Step schedulers that monitor a metric of an evaluation."""
        if self.monitors:
            self._step_on(module, latest_metrics(module.trainer), of_iteration=False)

    def after_epoch(self, module: pl.LightningModule) -> None:
        """Step schedulers that monitor a metric that is known only at the end of an epoch.

        Raises:
            ConfigError: If a metric is unknown although all are logged by now.
        """
        if not self.monitors:
            return
        self._step_on(module, latest_metrics(module.trainer), of_iteration=False)
        trainer = module.trainer
        every = trainer.check_val_every_n_epoch or 1
        if trainer.enable_validation and (trainer.current_epoch + 1) % every:
            return
        for config in self._configs:
            if config.reduce_on_plateau and config.monitor not in trainer.callback_metrics:
                message = (
                    f"configure_optimizers: {type(config.scheduler).__name__} monitors {config.monitor!r}, which is "
                    f"not logged; there are {', '.join(sorted(trainer.callback_metrics))}"
                )
                if config.strict:
                    raise ConfigError(message)
                rank_zero_warn(message)

    def _step_on(self, module: pl.LightningModule, metrics: Mapping[str, Any], of_iteration: bool) -> None:
        for number, config in enumerate(self._configs):
            if not config.reduce_on_plateau or config.monitor not in metrics or number in self._stepped:
                continue
            self._stepped.add(number)
            due = is_due_after_iteration if of_iteration else is_due_after_epoch
            if due(module, config):
                value = torch.as_tensor(metrics[str(config.monitor)], dtype=torch.float64, device="cpu")
                make_step(module, config, float(mean_over_ranks(value.to(module.device))))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}


def check_when_configured(module: Any) -> None:
    """Have what the module's `configure_optimizers` returns checked and kept when Lightning calls it, which is once.

    Lightning itself drops monitors under manual optimisation, and takes what cannot be used here.
    """
    configure = module.configure_optimizers

    def checked() -> tuple[list[Optimizer], list[dict[str, Any]]]:
        del module.configure_optimizers
        former = [config.scheduler for config in module.trainer.lr_scheduler_configs]
        if any(isinstance(scheduler, SteeredLearningRate) and scheduler.set_by_hand() for scheduler in former):
            rank_zero_warn(
                "the learning rate set on the optimizer of an earlier fit is not used: each fit makes its optimizers "
                "anew; set model.learning_rate"
            )
        optimizers, configs = _read(configure())
        _check(module, optimizers)
        module.fit_optimizers = Optimizers(optimizers, configs)
        names = ("scheduler", "name", "interval", "frequency")
        return optimizers, [{name: getattr(config, name) for name in names} for config in configs]

    # an attribute of the instance hides the method until it is called
    module.configure_optimizers = checked


def _read(returned: Any) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    if returned is None or (isinstance(returned, list | tuple) and not returned):
        raise ConfigError(f"configure_optimizers: returned {returned!r}, so nothing would be trained")
    if isinstance(returned, Mapping) and "optimizer" not in returned:
        raise ConfigError("configure_optimizers: returned a mapping without the entry 'optimizer'")
    try:
        # without an interval, once per iteration: an epoch has no meaning of its own here
        optimizers, configs = read_optimizers(returned, interval="step")
        for config in configs:
            if not isinstance(getattr(config.scheduler, "optimizer", None), Optimizer):
                raise ConfigError(f"configure_optimizers: {config.scheduler!r} is no scheduler of an optimizer")
            if not isinstance(config.frequency, int) or config.frequency < 1:
                raise ConfigError(f"configure_optimizers: frequency must be at least 1, got {config.frequency!r}")
        check_attached(optimizers, configs)
    except (MisconfigurationException, KeyError) as error:
        raise ConfigError(f"configure_optimizers: {one_line(error)}") from None
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers], configs


def _check(module: pl.LightningModule, optimizers: list[Optimizer]) -> None:
    """Raise ConfigError for optimizers that cannot be stepped here; tell of parameters that none of them has."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    owners: dict[int, str] = {}
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError(
                f"configure_optimizers: {kind} evaluates the loss again within a step, which minibatches do not allow; "
                "take a first-order optimizer such as Adam"
            )
        _try_out(optimizer)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if id(parameter) not in names:
                raise ConfigError(
                    f"configure_optimizers: {kind} has a parameter of shape {tuple(parameter.shape)} that is not the "
                    "model's; make its module an attribute of the model"
                )
            if id(parameter) in owners:
                raise ConfigError(
                    f"configure_optimizers: {names[id(parameter)]} is in {owners[id(parameter)]} and in {kind}; "
                    "each parameter has one optimizer"
                )
            owners[id(parameter)] = kind
    left = [names[id(p)] for p in module.parameters() if p.requires_grad and id(p) not in owners]
    if left:
        rank_zero_warn(
            f"configure_optimizers: {len(left)} parameters are in no optimizer and stay as they are: {left[0]}, ..."
        )
    if len(optimizers) > 1 and getattr(module.trainer.precision_plugin, "scaler", None) is not None:
        raise ConfigError(
            "trainer.precision: 16-mixed scales the gradients of one optimizer only; use bf16-mixed or 32-true"
        )


def _smallest(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for parameter in sorted(parameters, key=torch.Tensor.numel, reverse=True):
        found[parameter.dim()] = parameter
    return list(found.values())


def _try_out(optimizer: Optimizer) -> None:
    """Raise ConfigError if an optimizer of torch cannot make a step.

    A copy of it makes one with gradients of 0, of the smallest of the parameters of each number of dimensions.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim"):
        return
    optimizer = copy.copy(optimizer)
    optimizer.param_groups = [{**group, "params": _smallest(group["params"])} for group in optimizer.param_groups]
    kept = {p for group in optimizer.param_groups for p in group["params"]}
    optimizer.state = defaultdict(dict, {p: state for p, state in optimizer.state.items() if p in kept})
    try:
        optimizer = copy.deepcopy(optimizer)
    except Exception:  # of a user's hook or state; what cannot be copied is not tried, and shows itself in training
        return
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except Exception as error:
        raise ConfigError(f"configure_optimizers: {kind.__name__} cannot make a step: {one_line(error)}") from error
