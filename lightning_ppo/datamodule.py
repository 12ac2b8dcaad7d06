"""Lightning's owner of the environments: seeds by rank, training and evaluation data, state for resuming."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch
from gymnasium.vector import VectorEnv
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_ppo.collector import Collector, RolloutCollector, stepper_states
from lightning_ppo.config import EnvConfig, EvaluationConfig, RolloutConfig, as_section, to_container
from lightning_ppo.distributed import gather_objects, raise_together, rank, world_size
from lightning_ppo.envs import make_vector_env
from lightning_ppo.envs.atari import with_lessons
from lightning_ppo.envs.masks import observed_space
from lightning_ppo.envs.stagger import is_staggered
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.errors import ConfigError, EnvironmentFault
from lightning_ppo.evaluation import play
from lightning_ppo.groups import GroupedCollector, group_sizes, make_groups
from lightning_ppo.overlap import OverlappedCollector
from lightning_ppo.packing import pack, unpack
from lightning_ppo.policy import MaskedObservations
from lightning_ppo.remote import RemoteCollector, make_collector
from lightning_ppo.rollout import Episodes, Observations
from lightning_ppo.seeding import derive_seeds
from lightning_ppo.stream import RolloutStream
from lightning_ppo.tree import tree_map

_log = logging.getLogger(__name__)


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

    Args:
        env: A Gymnasium id, an import path `package.module:EnvClass`, an already built vector environment, or the
            settings of the `env` section.
        num_envs: N, copies of the environment per rank.
        num_steps: T, steps per environment and rollout.
        gamma: Discount factor.
        gae_lambda: Lambda of GAE.
        overlap: See `RolloutConfig.overlap`.
        processes: See `RolloutConfig.processes`.
        rollouts_per_epoch: Rollouts per Lightning epoch.
        backend: See `EnvConfig.backend`.
        env_kwargs: Arguments of the environment's constructor.
        evaluation: Settings of the `evaluation` section.
        evaluation_env: Vector environment to evaluate on; needed where `env` is an already built one.
        seed: Seeds environments and sampling; None takes the seed of torch's global generator.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self,
        env: str | VectorEnv | EnvConfig | Mapping[str, Any] = "CartPole-v1",
        num_envs: int | None = None,
        num_steps: int | None = None,
        *,
        gamma: float | None = None,
        gae_lambda: float | None = None,
        overlap: bool | None = None,
        processes: int | None = None,
        rollouts_per_epoch: int = 5,
        backend: str | None = None,
        env_kwargs: dict[str, Any] | None = None,
        evaluation: EvaluationConfig | Mapping[str, Any] | None = None,
        evaluation_env: VectorEnv | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(env, str | VectorEnv | EnvConfig | Mapping):
            raise ConfigError(
                f"env: expected an id, an import path, a vector environment or settings, got {type(env).__name__}"
            )
        self._given_env = env if isinstance(env, VectorEnv) else None
        self._given_evaluation_env = evaluation_env
        base = (
            to_container(env) if isinstance(env, EnvConfig | Mapping) else {"id": env if isinstance(env, str) else ""}
        )
        if self._given_env is not None:
            num_envs = self._given_env.num_envs
        env_settings = {"num_envs": num_envs, "backend": backend, "kwargs": env_kwargs}
        rollout = {"num_steps": num_steps, "gamma": gamma, "gae_lambda": gae_lambda}
        rollout |= {"overlap": overlap, "processes": processes}
        self.env_settings = as_section(EnvConfig, {**base, **_given(env_settings)}, "env")
        self.rollout_settings = as_section(RolloutConfig, _given(rollout), "rollout")
        self.evaluation_settings = as_section(EvaluationConfig, evaluation, "evaluation")
        if self.rollout_settings.processes > self.env_settings.num_envs:
            raise ConfigError(
                f"rollout.processes: {self.rollout_settings.processes} processes cannot share "
                f"{self.env_settings.num_envs} environments"
            )
        if rollouts_per_epoch < 1:
            raise ConfigError(f"rollouts_per_epoch: must be at least 1, got {rollouts_per_epoch}")
        self.rollouts_per_epoch = rollouts_per_epoch
        self.seed = seed
        self.save_hyperparameters(
            {
                "env": to_container(self.env_settings),
                **to_container(self.rollout_settings),
                "rollouts_per_epoch": rollouts_per_epoch,
                "evaluation": to_container(self.evaluation_settings),
                "seed": seed,
            },
            logger=False,
        )
        self._env: VectorEnv | None = None
        self._evaluation_env: VectorEnv | None = None
        self._stream: RolloutStream | None = None
        self._elsewhere: OverlappedCollector | GroupedCollector | None = None
        self._resume_state: dict[str, Any] | None = None

    @property
    def env(self) -> VectorEnv:
        """The training environments of this rank that this process has, built on first use."""
        if self._env is None:
            settings = self.env_settings
            self._env = self._given_env or with_lessons(self._make(self._group_sizes()[0], settings.stagger), settings)
        return self._env

    def _group_sizes(self) -> list[int]:
        return group_sizes(self.num_envs, self.rollout_settings.processes)

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

    def _make(self, num_envs: int, stagger: bool = False) -> VectorEnv:
        return self._maker(num_envs, stagger)()

    def _maker(self, num_envs: int, stagger: bool = False) -> Callable[[], VectorEnv]:
        settings = self.env_settings
        return partial(
            make_vector_env,
            settings.id,
            num_envs,
            backend=settings.backend,
            kwargs=settings.kwargs,
            wrappers=settings.wrappers,
            timeout=settings.timeout,
            max_restarts=settings.max_restarts if settings.on_error == "restart" else 0,
            stagger=stagger,
            atari=settings.atari,
        )

    def _base_seed(self) -> int:
        return (self.seed if self.seed is not None else torch.initial_seed()) % 2**32

    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module

    def setup(self, stage: str) -> None:
        """Start a new stream for each `fit`, so that its data does not depend on what was fitted before."""
        if stage == "fit":
            self._stream = self._elsewhere = None

    def train_dataloader(self) -> RolloutStream:
        """Return the stream of rollouts of this rank."""
        assert self.trainer is not None
        module = self._module()
        if self._stream is None:
            self._stream = RolloutStream(
                self._collector(module),
                self.rollout_settings,
                self.rollouts_per_epoch,
                module.update_settings.normalize_advantages,
                self.trainer.precision_plugin.forward_context,
            )
            self._restore()
        return self._stream

    def _collector(self, module: Any) -> RolloutCollector:
        """Return what collects the rollouts of this rank, in as many processes as it takes."""
        assert self.trainer is not None
        policy, precision = module.policy, self.trainer.precision_plugin.forward_context
        shares = self._shares()
        makes = [partial(self._make_elsewhere(size), policy, self.num_steps, *seeds) for size, seeds in shares]
        threads = max(1, torch.get_num_threads() // (len(makes) + self.rollout_settings.overlap))
        if self.rollout_settings.overlap:
            make = makes[0] if len(makes) == 1 else partial(make_groups, makes, self.num_envs)
            remote = RemoteCollector(make, policy, precision, threads)
            self._elsewhere = OverlappedCollector(remote, self.num_envs, self.num_steps)
            return self._elsewhere
        noise_seed, seeds = shares[0][1]
        own = Collector(
            self.env,
            policy,
            self.num_steps,
            torch.Generator(module.device).manual_seed(noise_seed),
            seeds,
            self.env_settings.action_mask,
            is_staggered(self.env),
            module.compile_update,
        )
        if len(makes) == 1:
            return own
        others: list[RemoteCollector] = []
        self._elsewhere = GroupedCollector(own, others, self.num_envs)
        for make in makes[1:]:  # one by one: if one cannot be started, those before it are ended
            others.append(RemoteCollector(make, policy, precision, threads))
        return self._elsewhere

    def _shares(self) -> list[tuple[int, tuple[int, list[int]]]]:
        """Return, for each process that collects, its number of environments, noise seed and their seeds."""
        sizes = self._group_sizes()
        seed, first = self._base_seed(), rank() * self.num_envs
        noise = derive_seeds(seed, rank(), 1, "noise")
        noise += derive_seeds(seed, rank() * (len(sizes) - 1), len(sizes) - 1, "noise of another group")
        shares = []
        for size, noise_seed in zip(sizes, noise, strict=True):
            shares.append((size, (noise_seed, derive_seeds(seed, first, size, "training"))))
            first += size
        return shares

    def _make_elsewhere(self, num_envs: int) -> Callable[..., Collector]:
        settings = self.env_settings
        return partial(make_collector, self._maker(num_envs, settings.stagger), settings)

    def val_dataloader(self) -> _OneItemLoader:
        """Return a loader of one item, the episodes of one evaluation."""
        return self._evaluation_loader(self.evaluation_settings.episodes, "evaluation")

    def test_dataloader(self) -> _OneItemLoader:
        """Return a loader of one item, the episodes of the final evaluation."""
        return self._evaluation_loader(self.evaluation_settings.final_episodes, "test")

    def predict_dataloader(self) -> _OneItemLoader:
        """Return a loader of one item, the first observations of the evaluation environments, with masks if any."""
        env = self._evaluation_environment()
        return _OneItemLoader(lambda: self._first_observations(env))

    def _first_observations(self, env: VectorEnv) -> Observations | MaskedObservations:
        seeds = derive_seeds(self._base_seed(), rank() * env.num_envs, env.num_envs, "evaluation")
        stepper = make_stepper(env, self.env_settings.action_mask, seeds, on_host=True)
        observations = tree_map(lambda x: torch.from_numpy(np.array(x)), stepper.observations)
        if stepper.action_masks is None:
            return observations
        return MaskedObservations(observations, torch.from_numpy(stepper.action_masks))

    def _evaluation_environment(self) -> VectorEnv:
        if self._given_env is not None and self._given_evaluation_env is None:
            raise ConfigError("evaluation_env: needed to evaluate or predict where env is an already built one")
        if self._evaluation_env is None:
            self._evaluation_env = self._given_evaluation_env or self._make(self.evaluation_settings.num_envs)
        return self._evaluation_env

    def _evaluation_loader(self, episodes: int, purpose: str) -> _OneItemLoader:
        if self._given_env is not None and self._given_evaluation_env is None:
            episodes = 0
        return _OneItemLoader(lambda: self.evaluate(episodes, purpose))

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
        env = self._evaluation_environment()
        seeds = derive_seeds(self._base_seed(), rank() * env.num_envs, env.num_envs, purpose)
        deterministic = self.evaluation_settings.deterministic
        return play(
            self._module().policy,
            env,
            share,
            seeds=seeds,
            deterministic=deterministic,
            seed=seeds[0],
            action_mask=self.env_settings.action_mask,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of environments, episode records and sampling of every rank; call it on all ranks."""
        if self._stream is None:
            return {}
        ranks = gather_objects(pack(self._stream.state_dict()))
        return {"ranks": ranks, "action_mask": self.env_settings.action_mask}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the environments exist."""
        self._resume_state = state_dict

    def _restore(self) -> None:
        if not self._resume_state or self._stream is None:
            return
        saved, self._resume_state = self._resume_state, None
        ranks, masks = saved["ranks"], self.env_settings.action_mask
        if len(ranks) != world_size():
            rank_zero_warn(
                f"the checkpoint was written by {len(ranks)} ranks, this run has {world_size()}: "
                "environments and sampling are seeded anew"
            )
            return
        state = unpack(ranks[rank()])
        if state["collector"] is None:
            _log.info("Episodes in progress were restarted: the process that collected died.")
            return
        steppers = stepper_states(state["collector"])
        sizes, ours = [len(stepper["ended"]) for stepper in steppers], self._group_sizes()
        kinds = {stepper["kind"] for stepper in steppers}
        kind = type(self.env.unwrapped).__name__
        change = None
        if sum(sizes) != self.num_envs:
            change = f"{sum(sizes)} environments per rank, this run {self.num_envs}"
        elif sizes != ours:
            change = f"environments in {len(sizes)} processes (rollout.processes), this run in {len(ours)}"
        elif kinds != {kind}:
            change = f"the state of a {', '.join(sorted(kinds))}, this run steps a {kind}"
        elif saved.get("action_mask", masks) != masks:  # those of the observations in progress are of another kind
            change = f"env.action_mask={saved['action_mask']}, this run {masks}"
        if change is not None:
            rank_zero_warn(f"the checkpoint has {change}: environments and sampling are seeded anew")
            return
        ahead = state["collector"].get("ahead")
        if ahead is not None and not (self.rollout_settings.overlap and len(ahead["rewards"]) == self.num_steps):
            reason = "rollout.overlap or rollout.num_steps has changed"
            rank_zero_warn(f"the rollout that was collected ahead is not learnt from: {reason}")
        for reason in {stepper["reason"] for stepper in steppers if stepper["env"] is None}:
            rank_zero_only(_log.info)(f"Episodes in progress were restarted: {reason}.")
        self._stream.load_state_dict(state)

    def on_exception(self, exception: BaseException) -> None:
        """End the processes that collect, whatever they are doing."""
        if self._elsewhere is not None:
            self._elsewhere.kill()

    def teardown(self, stage: str) -> None:
        """Close the environments that were built here."""
        if stage == "fit" and self._elsewhere is not None:
            self._elsewhere.close()
        for name, given in (("_env", self._given_env), ("_evaluation_env", self._given_evaluation_env)):
            env = getattr(self, name)
            if env is not None and env is not given:
                env.close()
            setattr(self, name, None)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
