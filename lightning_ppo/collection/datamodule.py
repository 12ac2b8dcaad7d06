"""Lightning's owner of the environments: rollouts for training, episodes for evaluation, state for resuming."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import gymnasium
import pytorch_lightning as pl
import torch
from gymnasium.vector import VectorEnv
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lightning_ppo.collection.changes import Changes
from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.environments import Environments
from lightning_ppo.collection.evaluations import Evaluations, OneItemLoader
from lightning_ppo.collection.groups import GroupedCollector, group_sizes
from lightning_ppo.collection.info_names import InfoNames
from lightning_ppo.collection.overlap import OverlappedCollector
from lightning_ppo.collection.processes import shares_of, start_collecting
from lightning_ppo.collection.resuming import Resuming
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.envs.changes import Change, make_change
from lightning_ppo.envs.masks import observed_space
from lightning_ppo.envs.reaching import make_changes
from lightning_ppo.envs.shown import ShownEnvironments
from lightning_ppo.envs.stagger import in_step_because
from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.settings.effects import without_effect
from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
from lightning_ppo.settings.hyperparameters import plain
from lightning_ppo.settings.loading import as_section, section_with, to_container
from lightning_ppo.support.distributed import raise_together, rank, world_size
from lightning_ppo.support.errors import ConfigError, EnvironmentFault, require
from lightning_ppo.support.randomness import checked_seed, derive_seeds, kept_generators, seed_process
from lightning_ppo.update.checked_loading import checked_loading

_log = logging.getLogger(__name__)


class RolloutDataModule(pl.LightningDataModule):
    """Streams fresh rollouts for `PPO`, and plays the episodes of validation and test.

    Arguments that are settings by themselves replace those of the sections `env` and `rollout`.

    Args:
        env: A Gymnasium id, an import path `package.module:EnvClass`, an environment class or a function that makes
            an environment, an already built vector environment, or the settings of the `env` section.
        num_envs: N, copies of the environment per rank.
        num_steps: T, steps per environment and rollout.
        rollout: Settings of the `rollout` section.
        gamma: Discount factor, a number or a schedule.
        gae_lambda: Lambda of GAE, likewise.
        overlap: See `RolloutConfig.overlap`.
        processes: See `RolloutConfig.processes`.
        rollouts_per_epoch: Rollouts per Lightning epoch.
        backend: See `EnvConfig.backend`.
        env_kwargs: Arguments of the environment's constructor.
        stagger: See `EnvConfig.stagger`.
        scores: See `EnvConfig.scores`.
        log_info: See `EnvConfig.log_info`.
        evaluation: Settings of the `evaluation` section.
        evaluation_env: Vector environment to evaluate on; needed where `env` is an already built one.
        seed: Seeds environments and sampling; None takes the seed of torch's global generator.

    Attributes:
        environments: Those of this rank.

    Raises:
        ConfigError: If a setting is out of range.
    """

    load_from_checkpoint = checked_loading(pl.LightningDataModule)

    def __init__(
        self,
        env: str | Callable[..., Any] | VectorEnv | EnvConfig | Mapping[str, Any] = "CartPole-v1",
        num_envs: int | None = None,
        num_steps: int | None = None,
        *,
        rollout: RolloutConfig | Mapping[str, Any] | None = None,
        gamma: Any = None,
        gae_lambda: Any = None,
        overlap: bool | None = None,
        processes: int | None = None,
        rollouts_per_epoch: int = 5,
        backend: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        stagger: bool | None = None,
        scores: str | None = None,
        log_info: Sequence[str] | str | None = None,
        evaluation: EvaluationConfig | Mapping[str, Any] | None = None,
        evaluation_env: VectorEnv | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(env, gymnasium.Env):
            raise ConfigError(f"env: a single {type(env).__name__} has no copies; give its class, or what makes it")
        if not (isinstance(env, str | VectorEnv | EnvConfig | Mapping) or callable(env)):
            raise ConfigError(
                f"env: expected an id, an import path, a class or function that makes an environment, a vector "
                f"environment or settings, got {type(env).__name__}"
            )
        given_env = env if isinstance(env, VectorEnv) else None
        if given_env is not None:
            num_envs = given_env.num_envs
        section = env if isinstance(env, EnvConfig | Mapping) else {"id": "" if given_env is not None else env}
        single: dict[str, Any] = {"num_envs": num_envs, "backend": backend, "kwargs": env_kwargs}
        single |= {"stagger": stagger, "scores": scores, "log_info": log_info}
        self.env_settings = section_with(EnvConfig, section, single, "env")
        single = {"num_steps": num_steps, "gamma": gamma, "gae_lambda": gae_lambda}
        single |= {"overlap": overlap, "processes": processes}
        self.rollout_settings = section_with(RolloutConfig, rollout, single, "rollout")
        self.evaluation_settings = as_section(EvaluationConfig, evaluation, "evaluation")
        if self.rollout_settings.processes > self.env_settings.num_envs:
            raise ConfigError(
                f"rollout.processes: {self.rollout_settings.processes} processes cannot share "
                f"{self.env_settings.num_envs} environments"
            )
        require(rollouts_per_epoch >= 1, f"rollouts_per_epoch: must be at least 1, got {rollouts_per_epoch}")
        self.rollouts_per_epoch = rollouts_per_epoch
        self.seed = None if seed is None else checked_seed(seed)
        self.save_hyperparameters(
            {
                **plain({"env": self.env_settings})[0],
                **to_container(self.rollout_settings),
                "rollouts_per_epoch": rollouts_per_epoch,
                "evaluation": to_container(self.evaluation_settings),
                "seed": seed,
            },
            logger=False,
        )
        self.environments = Environments(
            self.env_settings,
            self.evaluation_settings,
            group_sizes(self.num_envs, self.rollout_settings.processes)[0],
            self._base_seed,
            given_env,
            evaluation_env,
        )
        self._changes = Changes()
        self._evaluations = Evaluations(self.environments, self.env_settings, self.evaluation_settings, self._changes)
        self._resuming = Resuming(self.env_settings, self.rollout_settings, self._changes)
        self._stream: RolloutStream | None = None
        self._collecting = False
        self._elsewhere: OverlappedCollector | GroupedCollector | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from: it starts its own stream."""
        return self.__dict__ | dict.fromkeys(("trainer", "_stream", "_elsewhere")) | {"_collecting": False}

    @property
    def env(self) -> VectorEnv:
        """The training environments of this process, to look at, built on first use; `set_attr` changes them."""
        own = self.environments.training
        if self.rollout_settings.overlap:
            return ShownEnvironments(own, self.set_attr, self.num_envs, 0, "rollout.overlap", "false")
        return ShownEnvironments(own, self.set_attr, self.num_envs, own.num_envs, "rollout.processes", "1")

    @property
    def observation_space(self) -> gymnasium.Space:
        """Observation space of one environment, less an entry that is the action mask."""
        return observed_space(self.env.single_observation_space, self.env_settings.action_mask)

    @property
    def action_space(self) -> gymnasium.Space:
        """Action space of one environment."""
        return self.env.single_action_space

    @property
    def num_envs(self) -> int:
        """N, copies of the environment per rank."""
        return self.env_settings.num_envs

    @property
    def num_steps(self) -> int:
        """T, steps per environment and rollout."""
        return self.rollout_settings.num_steps

    def _base_seed(self) -> int:
        return torch.initial_seed() % 2**32 if self.seed is None else self.seed

    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module

    def setup(self, stage: str) -> None:
        """Start a new stream for each `fit`, so that its data does not depend on what was fitted before."""
        self.environments.let_go_after_fork()
        if stage == "fit":
            self._stream, self._elsewhere, self._collecting = None, None, False
            # before a checkpoint is restored; environments may draw from the global generators
            seed_process(derive_seeds(self._base_seed(), rank(), 1, "process")[0])

    def train_dataloader(self) -> RolloutStream:
        """Return the stream of rollouts of this rank."""
        assert self.trainer is not None
        module = self._module()
        if self._stream is None:
            if not self._resuming.pending:
                self._changes.begin()
            # the reset that the restored state makes up for must not draw on the restored global generators
            with kept_generators() if self._resuming.pending else nullcontext():
                self._stream = RolloutStream(
                    self._collector(module),
                    self.rollout_settings,
                    int(getattr(self.trainer, "fast_dev_run", 0)) or self.rollouts_per_epoch,
                    module.update_settings.normalize_advantages,
                    self.trainer.precision_plugin.forward_context,
                    self._changes.digest if world_size() > 1 else int,
                    InfoNames(self.env_settings.log_info),
                    lambda: module.progress,
                )
            self._collecting = True
            self._resuming.restore(self._stream, type(self.environments.training.unwrapped).__name__)
        return self._stream

    def _collector(self, module: Any) -> Collector | OverlappedCollector | GroupedCollector:
        """Return what collects the rollouts of this rank, in as many processes as it takes."""
        assert self.trainer is not None
        own_env = self.environments.training
        if reason := in_step_because(own_env):
            rank_zero_only(_log.warning)(f"env.stagger has no effect: {reason} (env.stagger=false leaves it at that)")
        given = {"env": self.env_settings, "evaluation": self.evaluation_settings, **module.hparams}
        for line in without_effect(given, self.action_space, self.environments.given_evaluation is not None):
            rank_zero_only(_log.warning)(line)
        collector = start_collecting(
            own_env,
            module.policy,
            self.env_settings,
            self.rollout_settings,
            shares_of(self.num_envs, self.rollout_settings.processes, self._base_seed(), rank()),
            module.device,
            self.trainer.precision_plugin.forward_context,
            module.compile_update,
            self._changes.training,
        )
        self._elsewhere = None if isinstance(collector, Collector) else collector
        return collector

    def set_attr(self, name: str, value: Any, *, evaluation: bool = False) -> None:
        """Set an attribute in every copy of the environment, before the next rollout is begun.

        It is set in the innermost environment or wrapper that has it, whoever steps the copies, and again in copies
        that are built later. It is in the checkpoint. Call it on all ranks, with the same value.

        Args:
            name: Of an attribute that the environment has.
            value: The same for every copy; a list is a value, too.
            evaluation: Whether it is set in evaluation environments as well.

        Raises:
            ConfigError: If the environment has no such attribute, or cannot be reached.
        """
        self._change(make_change("set_attr", name, (value,), {}), evaluation)

    def call(self, name: str, *args: Any, evaluation: bool = False, **kwargs: Any) -> None:
        """Call a method of every copy of the environment, as `set_attr` sets attributes; nothing is returned.

        The last call of each method is made again in copies that are built later, so its arguments should say where to
        go rather than how far: `call("set_level", 3)`, not `call("raise_level")`.
        """
        self._change(make_change("call", name, args, kwargs), evaluation)

    def _change(self, change: Change, evaluation: bool) -> None:
        if self._collecting and self._stream is not None:
            self._stream.collector.change([change])
        elif self._resuming.pending:
            self._resuming.new.append(change)
        if evaluation and self.environments.given_evaluation is not None:
            make_changes(self.environments.given_evaluation, [change])
        self._changes.add(change, evaluation)

    def val_dataloader(self) -> OneItemLoader:
        """Return a loader of one item, the episodes of one evaluation."""
        return self._evaluation_loader(self.evaluation_settings.episodes, "evaluation")

    def test_dataloader(self) -> OneItemLoader:
        """Return a loader of one item, the episodes of the final evaluation."""
        return self._evaluation_loader(self.evaluation_settings.final_episodes, "test")

    def predict_dataloader(self) -> OneItemLoader:
        """Return a loader of one item, the first observations of the evaluation environments, with masks if any."""
        _ = self.environments.evaluation  # or say at once why there are none
        return OneItemLoader(self._evaluations.first_observations)

    def _evaluation_loader(self, episodes: int, purpose: str) -> OneItemLoader:
        return OneItemLoader(lambda: self.evaluate(episodes if self.environments.can_evaluate else 0, purpose))

    def evaluate(self, episodes: int, purpose: str = "evaluation") -> Episodes:
        """Play this rank's share of `episodes` with the current policy, seeded for `evaluation` or `test`."""
        assert self.trainer is not None
        if self.trainer.sanity_checking:
            episodes = min(episodes, world_size())
        played, fault = None, None
        try:
            played = self._evaluations.play(self._module().policy, episodes, purpose)
        except EnvironmentFault as error:
            fault = error
        raise_together(fault, self._module().device)
        assert played is not None
        return played

    def state_dict(self) -> dict[str, Any]:
        """Return the state of environments, episode records and sampling of every rank; call it on all ranks."""
        return {} if self._stream is None else self._resuming.save(self._stream)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the environments exist."""
        self._resuming.load(state_dict)
        if self.environments.given_evaluation is not None:
            make_changes(self.environments.given_evaluation, self._changes.evaluation)

    def on_exception(self, exception: BaseException) -> None:
        """End the processes that collect, whatever they are doing."""
        if self._elsewhere is not None:
            self._elsewhere.kill()

    def teardown(self, stage: str) -> None:
        """Close the environments that were built here."""
        if stage == "fit":
            self._collecting = False
            if self._elsewhere is not None:
                self._elsewhere.close()
        self.environments.close()
