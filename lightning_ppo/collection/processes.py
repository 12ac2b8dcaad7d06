"""Which process collects with which environments, and the collector of a rank that follows from it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from gymnasium.vector import VectorEnv

from lightning_ppo.collection.collector import Collector
from lightning_ppo.collection.groups import GroupedCollector, group_sizes, make_groups
from lightning_ppo.collection.overlap import OverlappedCollector
from lightning_ppo.collection.remote import RemoteCollector
from lightning_ppo.envs import make_vector_env
from lightning_ppo.envs.atari import with_lessons
from lightning_ppo.envs.changes import Change
from lightning_ppo.envs.reaching import make_changes
from lightning_ppo.envs.stagger import is_staggered
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.support.randomness import derive_seeds, seed_global_generators


class Share(NamedTuple):
    """What one process collects."""

    num_envs: int
    noise_seed: int
    seeds: list[int]
    """One for each of its environments."""


def shares_of(num_envs: int, processes: int, seed: int, rank: int) -> list[Share]:
    """Return the shares of the processes of one rank, this one's first.

    Args:
        num_envs: N, of this rank.
        processes: Among how many processes they are shared.
        seed: Of the run.
        rank: Its number.
    """
    sizes, first = group_sizes(num_envs, processes), rank * num_envs
    noise = derive_seeds(seed, rank, 1, "noise")
    noise += derive_seeds(seed, rank * (processes - 1), processes - 1, "noise of another group")
    shares = []
    for size, noise_seed in zip(sizes, noise, strict=True):
        shares.append(Share(size, noise_seed, derive_seeds(seed, first, size, "training")))
        first += size
    return shares


def make_collector(
    settings: EnvConfig,
    policy: ActorCritic,
    num_steps: int,
    noise_seed: int,
    seeds: list[int],
    changes: Sequence[Change] = (),
) -> Collector:
    """Return a collector with environments of its own, changed, for a process of its own; see `Collector`."""
    (drawn_from,) = derive_seeds(noise_seed, 0, 1, "training")
    seed_global_generators(drawn_from)
    env = with_lessons(make_vector_env(settings), settings)
    make_changes(env, changes)
    generator = torch.Generator().manual_seed(noise_seed)
    said = settings.action_mask, is_staggered(env), False, settings.log_info
    return Collector(env, policy, num_steps, generator, seeds, *said)


def start_collecting(
    own_env: VectorEnv,
    policy: ActorCritic,
    env: EnvConfig,
    rollout: RolloutConfig,
    shares: Sequence[Share],
    device: torch.device,
    precision: Callable[[], AbstractContextManager],
    compile: bool,
    changes: Sequence[Change] = (),
) -> Collector | GroupedCollector | OverlappedCollector:
    """Return what collects the rollouts of a rank, in as many processes as the settings say.

    Args:
        own_env: The environments that this process has.
        policy: Acts.
        env: Settings of the environments of other processes.
        rollout: Length of the rollouts, and whether they are collected beside the update.
        shares: See `shares_of`.
        device: The policy's.
        precision: Enters the precision context the update runs in.
        compile: See `Collector`.
        changes: What is changed in all environments before their first episodes.
    """
    makes = [
        partial(make_collector, replace(env, num_envs=share.num_envs), policy, rollout.num_steps, *share[1:], changes)
        for share in shares
    ]
    num_envs = sum(share.num_envs for share in shares)
    threads = max(1, torch.get_num_threads() // (len(makes) + rollout.overlap))
    if rollout.overlap:
        make = makes[0] if len(makes) == 1 else partial(make_groups, makes, num_envs)
        return OverlappedCollector(RemoteCollector(make, policy, precision, threads), num_envs, rollout.num_steps)
    make_changes(own_env, changes)
    own = Collector(
        own_env,
        policy,
        rollout.num_steps,
        torch.Generator(device).manual_seed(shares[0].noise_seed),
        shares[0].seeds,
        env.action_mask,
        is_staggered(own_env),
        compile,
        env.log_info,
    )
    return own if len(makes) == 1 else make_groups([lambda: own, *makes[1:]], num_envs, precision, threads)
