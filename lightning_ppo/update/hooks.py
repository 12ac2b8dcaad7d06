"""Lightning's hooks of `PPO` besides the training step: each calls a part of the `PPO`.

They are functions of a `PPO`, which makes them its methods.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from pytorch_lightning.trainer.states import TrainerFn

from lightning_ppo.policy.actor_critic import MaskedObservations
from lightning_ppo.rollout.shapes import Episodes, Observations
from lightning_ppo.speed import shared_sums, switch
from lightning_ppo.support.distributed import join_ranks
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update import training_state
from lightning_ppo.update.checks import check_fit
from lightning_ppo.update.optimizers import Optimizers, check_when_configured
from lightning_ppo.update.trainer_checks import check_trainer

if TYPE_CHECKING:
    from lightning_ppo.update.ppo import PPO

# ---------------------------------------------------------------- the fit


def configure_callbacks(module: "PPO") -> list:
    """Explain what of the Trainer cannot work here, before Lightning rejects it without saying what to do."""
    check_trainer(module.trainer)
    if module.trainer.state.fn == TrainerFn.FITTING:
        check_when_configured(module)
    return []


def setup(module: "PPO", stage: str) -> None:
    """Turn the shortcuts on or off, and connect the ranks."""
    switch.turn(not module.plain)
    device, nodes = module.trainer.strategy.root_device, module.trainer.num_nodes
    join_ranks(None if module.plain else partial(shared_sums.connect, device, nodes))


def on_fit_start(module: "PPO") -> None:
    """Check what can only be checked once data, callbacks and optimizers are known."""
    trainer: Any = module.trainer
    if not module.fit_optimizers.optimizers:
        raise ConfigError("configure_callbacks: a subclass that overrides it calls super().configure_callbacks()")
    check_fit(module, getattr(trainer, "datamodule", None), trainer)
    if trainer.fast_dev_run:  # Lightning bounds optimizer steps, too, of which a rollout has many
        trainer.fit_loop.epoch_loop.max_steps = -1
    module.recent_episodes.keep_share()
    module.coefficients.forget()
    module.minibatch_update = None


def on_train_start(module: "PPO") -> None:
    """Apply optimizer settings that changed on resuming, and end a run at once if its budget is used up."""
    module.fit_optimizers.use_settings()
    data: Any = getattr(module.trainer, "datamodule", None)
    module.budget.begin(module.trainer, data.num_steps * data.num_envs if hasattr(data, "num_steps") else None)


def on_train_epoch_start(module: "PPO") -> None:
    """Count iterations from here as those of this epoch."""
    module.budget.begin_epoch(module.trainer)


def on_train_batch_end(module: "PPO", outputs: Any, batch: Any, batch_idx: int) -> None:
    """Step schedulers that monitor a metric logged elsewhere."""
    module.fit_optimizers.after_logging(module)


def on_train_epoch_end(module: "PPO") -> None:
    """Step schedulers that monitor what is known at the end of an epoch only."""
    module.fit_optimizers.after_epoch(module)


def on_fit_end(module: "PPO") -> None:
    """Release what belongs to the fit; a launched process sends its state back with the weights."""
    training_state.send_home(module)
    module.fit_optimizers, module.minibatch_update = Optimizers(), None


# ---------------------------------------------------------------- evaluation and prediction


def take_in(module: "PPO", episodes: Episodes, batch_idx: int) -> None:
    """Take in the episodes of a validation or test."""
    module.evaluation_results.add(episodes)


def on_validation_epoch_end(module: "PPO") -> None:
    """Log the evaluation under `eval/`, and step schedulers that monitor it."""
    module.evaluation_results.log(module, "eval", module.env_steps)
    if not module.trainer.sanity_checking:
        module.fit_optimizers.after_evaluation(module)


def on_test_epoch_end(module: "PPO") -> None:
    """Log the evaluation under `test/`."""
    module.evaluation_results.log(module, "test", module.env_steps)


def predict_step(module: "PPO", batch: Observations | MaskedObservations, batch_idx: int) -> Any:
    """Return deterministic actions, as the environment takes them, for a batch of observations (B, ...)."""
    if isinstance(batch, MaskedObservations):
        return module.policy.predict(batch.observations, action_masks=batch.action_masks)
    return module.policy.predict(batch)
