"""Lightning's owner of the environments: seeds by rank, training and evaluation data, state for resuming."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytorch_lightning as pl
import torch
from gymnasium.vector import VectorEnv
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_ppo.collection.collector import Collector, RolloutCollector, stepper_states
from lightning_ppo.collection.groups import GroupedCollector, group_sizes, make_groups
from lightning_ppo.collection.overlap import OverlappedCollector
from lightning_ppo.collection.remote import RemoteCollector
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.collection.worker import make_collector
from lightning_ppo.envs import make_vector_env
from lightning_ppo.envs.atari import with_lessons
from lightning_ppo.envs.built import remember
from lightning_ppo.envs.faults import close_env
from lightning_ppo.envs.masks import observed_space
from lightning_ppo.envs.partial import PartOfEnvironments
from lightning_ppo.envs.scores import built_by_hand
from lightning_ppo.envs.stagger import in_step_because, is_staggered, prepare
from lightning_ppo.envs.state import largest_part, return_to_built
from lightning_ppo.envs.tensors import make_stepper
from lightning_ppo.evaluation.play import play
from lightning_ppo.policy.actor_critic import MaskedObservations
from lightning_ppo.rollout.shapes import Episodes, Observations
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.settings.effects import without_effect
from lightning_ppo.settings.environment import EnvConfig, EvaluationConfig
from lightning_ppo.settings.hyperparameters import plain
from lightning_ppo.settings.loading import as_section, to_container
from lightning_ppo.support.distributed import gather_objects, raise_together, rank, world_size
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from lightning_ppo.support.packing import pack, unpack
from lightning_ppo.support.randomness import derive_seeds, kept_generators, own_generators, seed_process
from lightning_ppo.support.tree import tree_map
from lightning_ppo.update.checked_loading import checked_loading

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
        stagger: See `EnvConfig.stagger`.
        scores: See `EnvConfig.scores`.
        evaluation: Settings of the `evaluation` section.
        evaluation_env: Vector environment to evaluate on; needed where `env` is an already built one.
        seed: Seeds environments and sampling; None takes the seed of torch's global generator.

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
        self._given_env = env if isinstance(env, VectorEnv) else None
        self._given_evaluation_env = evaluation_env
        if self._given_env is not None:
            remember(self._given_env)
        base: Mapping[str, Any] = {"id": env if isinstance(env, str) else ""}
        if isinstance(env, EnvConfig | Mapping):
            base = env if isinstance(env, Mapping) else {f.name: getattr(env, f.name) for f in fields(env)}
        if self._given_env is not None:
            num_envs = self._given_env.num_envs
        env_settings = {"num_envs": num_envs, "backend": backend, "kwargs": env_kwargs}
        env_settings |= {"stagger": stagger, "scores": scores}
        rollout = {"num_steps": num_steps, "gamma": gamma, "gae_lambda": gae_lambda}
        rollout |= {"overlap": overlap, "processes": processes}
        self.env_settings = as_section(EnvConfig, {**base, **_given(env_settings)}, "env")
        innermost = self.env_settings.scores == "innermost"
        if self._given_env is not None:
            self._given_env = prepare(built_by_hand(self._given_env, innermost), self.env_settings.stagger)
        if evaluation_env is not None:
            self._given_evaluation_env = built_by_hand(evaluation_env, innermost)
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
                "env": to_container(self.env_settings) | {"kwargs": self.env_settings.kwargs},
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
        self._said_large = False
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made from, less what has been built: it builds its own, as each process does."""
        return self.__dict__ | dict.fromkeys(("trainer", "_env", "_evaluation_env", "_stream", "_elsewhere"))

    @property
    def env(self) -> VectorEnv:
        """The training environments of this rank, built on first use; where others are elsewhere, to look at only."""
        reached = self._group_sizes()[0]
        if self.rollout_settings.overlap:
            return PartOfEnvironments(self._own_env, 0, self.num_envs, "rollout.overlap", "false")
        if reached < self.num_envs:
            return PartOfEnvironments(self._own_env, reached, self.num_envs, "rollout.processes", "1")
        return self._own_env

    @property
    def _own_env(self) -> VectorEnv:
        """The training environments of this rank that this process has, built on first use."""
        if self._env is None:
            settings = self.env_settings
            self._env = self._given_env
        if self._env is None:
            # the process group may not be there yet, but Lightning knows the rank from its launcher
            (seed,) = derive_seeds(self._base_seed(), getattr(rank_zero_only, "rank", 0) or 0, 1, "process")
            with own_generators(seed):
                self._env = with_lessons(self._make(self._group_sizes()[0], settings.stagger), settings)
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
            max_episode_steps=settings.max_episode_steps,
            scores=settings.scores,
        )

    def _base_seed(self) -> int:
        return (self.seed if self.seed is not None else torch.initial_seed()) % 2**32

    def _module(self) -> Any:
        assert self.trainer is not None
        return self.trainer.lightning_module

    def setup(self, stage: str) -> None:
        """Start a new stream for each `fit`, so that its data does not depend on what was fitted before."""
        if self._process != os.getpid():  # it was forked: what was built before belongs to the parent
            self._of_parent = self._env, self._evaluation_env
            self._env = self._evaluation_env = None
            self._process = os.getpid()
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
            with kept_generators() if self._resume_state else nullcontext():
                self._stream = RolloutStream(
                    self._collector(module),
                    self.rollout_settings,
                    int(getattr(self.trainer, "fast_dev_run", 0)) or self.rollouts_per_epoch,
                    module.update_settings.normalize_advantages,
                    self.trainer.precision_plugin.forward_context,
                )
            self._restore()
        return self._stream

    def _collector(self, module: Any) -> RolloutCollector:
        """Return what collects the rollouts of this rank, in as many processes as it takes."""
        assert self.trainer is not None
        if reason := in_step_because(self._own_env):
            rank_zero_only(_log.warning)(f"env.stagger has no effect: {reason} (env.stagger=false leaves it at that)")
        given = {"env": self.env_settings, "evaluation": self.evaluation_settings, **module.hparams}
        for line in without_effect(given, self.action_space, self._given_evaluation_env is not None):
            rank_zero_only(_log.warning)(line)
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
            self._own_env,
            policy,
            self.num_steps,
            torch.Generator(module.device).manual_seed(noise_seed),
            seeds,
            self.env_settings.action_mask,
            is_staggered(self._own_env),
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
            with own_generators(derive_seeds(self._base_seed(), rank(), 1, "evaluation process")[0]):
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
        if env is not self._given_evaluation_env:
            return_to_built(env)  # what outlasts resets would make an evaluation depend on those before it
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
        state = self._stream.get_state()
        packed = pack(state)
        self._warn_if_large(state, packed)
        return {"ranks": gather_objects(packed), "task": self._task()}

    def _task(self) -> dict[str, Any]:
        """Return the settings that make the environment what it is, as plain data."""
        names = ("id", "kwargs", "wrappers", "action_mask", "atari")
        return plain({name: getattr(self.env_settings, name) for name in names})[0]

    def _warn_if_large(self, state: dict[str, Any], packed: dict[str, Any]) -> None:
        """Say once that the environments' state makes checkpoints large, and what of it."""
        limit = self.env_settings.large_state * 1e6
        if self._said_large or _num_bytes(packed) <= limit or state["collector"] is None:
            return
        states = [found["env"] for found in stepper_states(state["collector"]) if found["env"] is not None]
        size = _num_bytes(pack(states))
        if size > limit:
            self._said_large = True
            _, name = max(map(largest_part, states))
            rank_zero_warn(
                f"{size / 1e6:,.0f} MB of each checkpoint are the state of environments, most of it in {name}: a "
                "get_state() and set_state(state) of theirs can leave out what need not be kept; env.large_state sets "
                "from where on this is said"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the environments exist."""
        self._resume_state = state_dict

    def _restore(self) -> None:
        if not self._resume_state or self._stream is None:
            return
        ranks, task = self._resume_state["ranks"], self._resume_state.get("task", self._task())
        self._resume_state = None
        if len(ranks) != world_size():
            rank_zero_warn(
                f"the checkpoint was written by {len(ranks)} ranks, this run has {world_size()}: "
                "environments and sampling are seeded anew"
            )
            return
        reasons = {reason for reason in gather_objects(self._restore_rank(unpack(ranks[rank()]), task)) if reason}
        for reason in sorted(reasons):
            rank_zero_only(_log.info)(f"Episodes in progress were restarted: {reason}.")

    def _restore_rank(self, state: dict[str, Any], task: dict[str, Any]) -> str:
        """Go on where this rank stood; return why episodes start anew, if any do."""
        assert self._stream is not None
        if state["collector"] is None:
            return "the process that collected died"
        steppers = stepper_states(state["collector"])
        sizes, ours = [len(stepper["ended"]) for stepper in steppers], self._group_sizes()
        kinds = {stepper["kind"] for stepper in steppers}
        kind = type(self._own_env.unwrapped).__name__
        change = None
        if sum(sizes) != self.num_envs:
            change = f"{sum(sizes)} environments per rank, this run {self.num_envs}"
        elif sizes != ours:
            change = f"environments in {len(sizes)} processes (rollout.processes), this run in {len(ours)}"
        elif kinds != {kind}:
            change = f"the state of a {', '.join(sorted(kinds))}, this run steps a {kind}"
        if change is not None:
            rank_zero_warn(f"the checkpoint has {change}: environments and sampling are seeded anew")
            return ""
        ahead = state["collector"].get("ahead")
        if ahead is not None and not (self.rollout_settings.overlap and len(ahead["rewards"]) == self.num_steps):
            reason = "rollout.overlap or rollout.num_steps has changed"
            rank_zero_warn(f"the rollout that was collected ahead is not learnt from: {reason}")
        changed = [f"env.{name}" for name, value in self._task().items() if value != task.get(name, value)]
        if changed:
            for stepper in steppers:
                stepper |= {"env": None, "reason": f"{', '.join(changed)} changed since the run was saved"}
        return self._stream.set_state(state)

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
                close_env(env)
            setattr(self, name, None)


def _num_bytes(packed: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in packed["tensors"])


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
