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
from lightning_ppo.update.compiling import choose
from lightning_ppo.update.iteration import set_noise_color
from lightning_ppo.update.optimizers import Optimizers, check_when_configured
from lightning_ppo.update.progress_bar import show_env_steps
from lightning_ppo.update.sharding import is_sharded, share_when_configured
from lightning_ppo.update.trainer_checks import check_trainer

if TYPE_CHECKING:
    from lightning_ppo.update.ppo import PPO

# ---------------------------------------------------------------- the fit


def configure_callbacks(module: "PPO") -> list:
    """Explain what of the Trainer cannot work here, before Lightning rejects it, and show progress in steps."""
    check_trainer(module.trainer)
    share_when_configured(module)
    if module.trainer.state.fn == TrainerFn.FITTING:
        check_when_configured(module)
        show_env_steps(module.trainer)
    return []


def setup(module: "PPO", stage: str) -> None:
    """Turn the shortcuts on or off, and connect the ranks."""
    switch.turn(not module.plain and not is_sharded(module.trainer))
    device, nodes = module.trainer.strategy.root_device, module.trainer.num_nodes
    join_ranks(None if module.plain else partial(shared_sums.connect, device, nodes))


def on_fit_start(module: "PPO") -> None:
    """Check what can only be checked once data, callbacks and optimizers are known."""
    trainer: Any = module.trainer
    if not module.fit_optimizers.optimizers:
        raise ConfigError("configure_callbacks: a subclass that overrides it calls super().configure_callbacks()")
    data = getattr(trainer, "datamodule", None)
    check_fit(module, data, trainer)
    if module.compile_setting == "auto":
        module.compile_update = choose(module, data, trainer).compiled
    if trainer.fast_dev_run:  # Lightning bounds optimizer steps, too, of which a rollout has many
        trainer.fit_loop.epoch_loop.max_steps = -1
    module.recent_episodes.keep_share()
    module.coefficients.forget()
    module.minibatch_update = None


def on_train_start(module: "PPO") -> None:
    """Apply optimizer settings that changed on resuming, end a run whose budget is used up, and try out schedulers."""
    trainer, update, optimizers = module.trainer, module.update_settings, module.fit_optimizers
    optimizers.use_settings()
    data: Any = getattr(trainer, "datamodule", None)
    rows = data.num_steps * data.num_envs if hasattr(data, "num_steps") else None
    module.budget.begin(trainer, rows)
    set_noise_color(module)
    minibatches = (rows or 0) // update.minibatch_size * update.most_epochs
    left = module.budget.iterations_left(trainer, rows, minibatches * len(optimizers.optimizers))
    optimizers.try_schedulers(module, left)


def on_train_epoch_start(module: "PPO") -> None:
    """Count iterations from here as those of this epoch."""
    module.budget.begin_epoch(module.trainer)


def on_train_batch_end(module: "PPO", outputs: Any, batch: Any, batch_idx: int) -> None:
    """Step schedulers that monitor a metric logged elsewhere."""
    module.fit_optimizers.after_logging(module)


def on_train_epoch_end(module: "PPO") -> None:
    """Step schedulers that monitor what is known at the end of an epoch only; tell of an epoch that was broken off."""
    module.budget.end_epoch(module.trainer)
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


def predict(
    module: "PPO",
    observations: Any,
    state: Any = None,
    starts: Any = None,
    action_masks: Any = None,
    deterministic: bool = True,
) -> tuple[Any, Any]:
    """Return actions as the environment takes them, and the memory that follows; None without one.

    NumPy arrays, tensors and Python numbers are taken, nested in dicts and tuples, of one environment or of B of them.
    What is returned is of the same kind, for as many.

    Args:
        module: The agent.
        observations: (B, ...) or (...).
        state: (B, H) or (H,), what was returned with the actions before; None before the first.
        starts: (B,) or one bool, an episode starts with the observation; None where none does.
        action_masks: (B, M) or (M,), or as the environment gives them; True or 1 for choices that may be taken.
        deterministic: Return the most probable actions instead of samples.

    Raises:
        ConfigError: If an argument is not of the agent's spaces.
    """
    return module.policy.predict(observations, state, starts, action_masks, deterministic)


def predict_step(module: "PPO", batch: Observations | MaskedObservations, batch_idx: int) -> Any:
    """Return deterministic actions, as the environment takes them, for a batch of observations (B, ...)."""
    observations, masks = batch if isinstance(batch, MaskedObservations) else (batch, None)
    return module.predict(observations, action_masks=masks)[0]
