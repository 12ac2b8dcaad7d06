"""The data module and the agent that settings describe."""

from typing import Any

from lightning_ppo.settings.sections import Config


def build(config: Config) -> tuple[Any, Any]:
    """Return a `RolloutDataModule` and a `PPO`; the global generators, which draw the weights, are seeded first.

    Raises:
        UserError: For every error that a user can correct.
    """
    import pytorch_lightning as pl

    from lightning_ppo.collection.datamodule import RolloutDataModule
    from lightning_ppo.speed.freed_memory import keep_freed_memory
    from lightning_ppo.speed.hardware import limit_threads
    from lightning_ppo.update.ppo import PPO

    limit_threads()
    if not config.plain:
        keep_freed_memory()
    pl.seed_everything(config.seed, verbose=False)
    data = RolloutDataModule(
        config.env,
        rollout=config.rollout,
        rollouts_per_epoch=config.rollouts_per_epoch,
        evaluation=config.evaluation,
        seed=config.seed,
    )
    model = PPO(
        data.observation_space,
        data.action_space,
        objective=config.objective,
        update=config.update,
        optimizer=config.optimizer,
        policy=config.policy,
        normalize=config.normalize,
        total_env_steps=config.total_env_steps,
        compile=config.compile,
        plain=config.plain,
        loss_terms=config.loss_terms,
    )
    return data, model
