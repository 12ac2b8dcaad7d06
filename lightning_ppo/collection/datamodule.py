"""Lightning's owner of the environments: rollouts for training, episodes for evaluation, state for resuming."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch
from gymnasium.vector import VectorEnv
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.environments import Environments
from lightning_ppo.collection.groups import GroupedCollector, group_sizes
from lightning_ppo.collection.overlap import OverlappedCollector
from lightning_ppo.collection.processes import shares_of, start_collecting
from lightning_ppo.collection.resuming import Resuming
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.envs.masks import observed_space
from lightning_ppo.envs.partial import PartOfEnvironments
from lightning_ppo.envs.stagger import in_step_because
from lightning_ppo.envs.state import return_to_built
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import MaskedObservations
from lightning_ppo.rollout.shapes import Episodes, Observations
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.settings.effects import without_effect
from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
from lightning_ppo.settings.loading import as_section, to_container
from lightning_ppo.support.distributed import raise_together, rank, world_size
from lightning_ppo.support.errors import ConfigError, EnvironmentFault, require
from lightning_ppo.support.randomness import checked_seed, derive_seeds, kept_generators, seed_process
from lightning_ppo.support.tree import tree_map
from lightning_ppo.update.checked_loading import checked_loading

_log = logging.getLogger(__name__)

Section = TypeVar("Section")


class _OneItemLoader:
    """A loader of one item, made when it is asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.make()


class RolloutDataModule(pl.LightningDataModule):
    """Streams fresh rollouts for `PPO`, and plays the episodes of validation and test.

    Arguments that are settings by themselves replace those of the sections `env` and `rollout`.

    Args:
        env: A Gymnasium id, an import path `package.module:EnvClass`, an already built vector environment, or the
            settings of the `env` section.
        num_envs: N, copies of the environment per rank.
        num_steps: T, steps per environment and rollout.
        rollout: Settings of the `rollout` section.
        gamma: Discount factor.
        gae_lambda: Lambda of GAE.
        overlap: See `RolloutConfig.overlap`.
        processes: See `RolloutConfig.processes`.
        rollouts_per_epoch: Rollouts per Lightning epoch.
        backend: See `EnvConfig.backend`.
        env_kwargs: Arguments of the environment's constructor.
        stagger: See `EnvConfig.stagger`.
        scores: See `EnvConfig.scores`.
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
        env: str | VectorEnv | EnvConfig | Mapping[str, Any] = "CartPole-v1",
        num_envs: int | None = None,
        num_steps: int | None = None,
        *,
        rollout: RolloutConfig | Mapping[str, Any] | None = None,
        gamma: float | None = None,
        gae_lambda: float | None = None,
        overlap: bool | None = None,
        processes: int | None = None,
        rollouts_per_epoch: int = 5,
        backend: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        stagger: bool | None = None,
        scores: str | None = None,
        evaluation: EvaluationConfig | Mapping[str, Any] | None = None,
        evaluation_env: VectorEnv | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(env, str | VectorEnv | EnvConfig | Mapping):
            raise ConfigError(
                f"env: expected an id, an import path, a vector environment or settings, got {type(env).__name__}"
            )
        given_env = env if isinstance(env, VectorEnv) else None
        if given_env is not None:
            num_envs = given_env.num_envs
        section = env if isinstance(env, EnvConfig | Mapping) else {"id": env if isinstance(env, str) else ""}
        single: dict[str, Any] = {"num_envs": num_envs, "backend": backend, "kwargs": env_kwargs}
        single |= {"stagger": stagger, "scores": scores}
        self.env_settings = _section(EnvConfig, section, single, "env")
        single = {"num_steps": num_steps, "gamma": gamma, "gae_lambda": gae_lambda}
        single |= {"overlap": overlap, "processes": processes}
        self.rollout_settings = _section(RolloutConfig, rollout, single, "rollout")
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
                "env": to_container(self.env_settings) | {"kwargs": self.env_settings.kwargs},
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
        self._resuming = Resuming(self.env_settings, self.rollout_settings)
        self._stream: RolloutStream | None = None
        self._elsewhere: OverlappedCollector | GroupedCollector | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from: it starts its own stream."""
        return self.__dict__ | dict.fromkeys(("trainer", "_stream", "_elsewhere"))

    @property
    def env(self) -> VectorEnv:
        """The training environments of this rank, built on first use; where others are elsewhere, to look at only."""
        own = self.environments.training
        if self.rollout_settings.overlap:
            return PartOfEnvironments(own, 0, self.num_envs, "rollout.overlap", "false")
        if own.num_envs < self.num_envs:
            return PartOfEnvironments(own, own.num_envs, self.num_envs, "rollout.processes", "1")
        return own

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
            self._stream = self._elsewhere = None
            # before a checkpoint is restored; environments may draw from the global generators
            seed_process(derive_seeds(self._base_seed(), rank(), 1, "process")[0])

    def train_dataloader(self) -> RolloutStream:
        """Return the stream of rollouts of this rank."""
        assert self.trainer is not None
        module = self._module()
        if self._stream is None:
            # the reset that the restored state makes up for must not draw on the restored global generators
            with kept_generators() if self._resuming.pending else nullcontext():
                self._stream = RolloutStream(
                    self._collector(module),
                    self.rollout_settings,
                    int(getattr(self.trainer, "fast_dev_run", 0)) or self.rollouts_per_epoch,
                    module.update_settings.normalize_advantages,
                    self.trainer.precision_plugin.forward_context,
                )
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
        )
        self._elsewhere = None if isinstance(collector, Collector) else collector
        return collector

    def val_dataloader(self) -> _OneItemLoader:
        """Return a loader of one item, the episodes of one evaluation."""
        return self._evaluation_loader(self.evaluation_settings.episodes, "evaluation")

    def test_dataloader(self) -> _OneItemLoader:
        """Return a loader of one item, the episodes of the final evaluation."""
        return self._evaluation_loader(self.evaluation_settings.final_episodes, "test")

    def predict_dataloader(self) -> _OneItemLoader:
        """Return a loader of one item, the first observations of the evaluation environments, with masks if any."""
        env = self.environments.evaluation
        return _OneItemLoader(lambda: self._first_observations(env))

    def _first_observations(self, env: VectorEnv) -> Observations | MaskedObservations:
        seeds = derive_seeds(self._base_seed(), rank() * env.num_envs, env.num_envs, "evaluation")
        stepper = make_stepper(env, self.env_settings.action_mask, seeds, on_host=True)
        observations = tree_map(lambda x: torch.from_numpy(np.array(x)), stepper.observations)
        if stepper.action_masks is None:
            return observations
        return MaskedObservations(observations, torch.from_numpy(stepper.action_masks))

    def _evaluation_loader(self, episodes: int, purpose: str) -> _OneItemLoader:
        return _OneItemLoader(lambda: self.evaluate(episodes if self.environments.can_evaluate else 0, purpose))

    def evaluate(self, episodes: int, purpose: str = "evaluation") -> Episodes:
        """Play this rank's share of `episodes` with the current policy, seeded for `evaluation` or `test`."""
        played, fault = None, None
        try:
            played = self._play(episodes, purpose)
        except EnvironmentFault as error:
            fault = error
        raise_together(fault, self._module().device)
        assert played is not None
        return played

    def _play(self, episodes: int, purpose: str) -> Episodes:
        assert self.trainer is not None
        if self.trainer.sanity_checking:
            episodes = min(episodes, world_size())
        share = episodes // world_size() + (rank() < episodes % world_size())
        if share == 0:
            return Episodes(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))
        env = self.environments.evaluation
        if env is not self.environments.given_evaluation:
            return_to_built(env)  # what outlasts resets would make an evaluation depend on those before it
        seeds = derive_seeds(self._base_seed(), rank() * env.num_envs, env.num_envs, purpose)
        return play(
            self._module().policy,
            env,
            share,
            seeds=seeds,
            deterministic=self.evaluation_settings.deterministic,
            seed=seeds[0],
            action_mask=self.env_settings.action_mask,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of environments, episode records and sampling of every rank; call it on all ranks."""
        return {} if self._stream is None else self._resuming.save(self._stream)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the environments exist."""
        self._resuming.pending = state_dict

    def on_exception(self, exception: BaseException) -> None:
        """End the processes that collect, whatever they are doing."""
        if self._elsewhere is not None:
            self._elsewhere.kill()

    def teardown(self, stage: str) -> None:
        """Close the environments that were built here."""
        if stage == "fit" and self._elsewhere is not None:
            self._elsewhere.close()
        self.environments.close()


def _section(
    kind: type[Section], given: Section | Mapping[str, Any] | None, single: dict[str, Any], key: str
) -> Section:
    """Return a section of settings in which single ones that are not None replace those of the section."""
    single = {name: value for name, value in single.items() if value is not None}
    if not single:
        return as_section(kind, given, key)
    base = given if isinstance(given, Mapping) else vars(given) if given is not None else {}
    return as_section(kind, {**base, **single}, key)
