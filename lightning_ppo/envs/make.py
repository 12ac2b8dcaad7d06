"""Build vector environments: Gymnasium ids, a user's class by import path, any backend."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from lightning_ppo.envs import arguments
from lightning_ppo.envs import atari as ale
from lightning_ppo.envs.built import remember
from lightning_ppo.envs.faults import GuardedEnv
from lightning_ppo.envs.processes import ProcessVectorEnv
from lightning_ppo.envs.scores import innermost_score
from lightning_ppo.envs.stagger import NO_TIME_LIMIT, FirstEpisodeLimit, mark, prepare, time_limit
from lightning_ppo.settings.class_path import instantiate
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.loading import copied
from lightning_ppo.support.env_specs import explain, find_spec
from lightning_ppo.support.errors import ConfigError, EnvironmentFault

_log = logging.getLogger(__name__)


def make_vector_env(settings: EnvConfig, render_mode: str | None = None) -> VectorEnv:
    """Return a vector environment of `settings.num_envs` copies.

    `vector` is the environment's own vectorised implementation, `sync` steps the copies one after the other in this
    process, `async` in one process each, `envpool` takes EnvPool's implementation of the task of that name. `auto` is
    the native implementation where there is one, else `sync`.

    Args:
        settings: Which environment, how many copies, and how they are stepped and watched.
        render_mode: How single copies are shown; None leaves that to `settings.kwargs`.

    Raises:
        ConfigError: If the backend cannot do what it is told to.
        EnvironmentFault: If there is no such environment, a package is missing, or the constructor fails.
    """
    _check(settings)
    stagger, why_not = settings.stagger, ""
    if stagger and ale.is_atari(settings.id):
        stagger, why_not = False, ale.NOT_STAGGERED
    try:
        if settings.backend == "envpool":
            return prepare(_make_pool(settings), stagger, why_not)
        spec = find_spec(settings.id)
        if _steps_all_at_once(spec, settings):
            env = prepare(_make_native(spec, settings), stagger, why_not)
            remember(env)
            return env
        env = _make_copies(spec, settings, stagger, render_mode)
        if not stagger:
            return mark(env, "", why_not)
        limited = env.get_attr("stagger_limit")[0] is not None
        return mark(env, "copies" if limited else "", NO_TIME_LIMIT)
    except (ConfigError, EnvironmentFault):
        raise
    except (Exception, SystemExit) as error:
        raise explain(settings.id, error) from error


def _max_restarts(settings: EnvConfig) -> int:
    return settings.max_restarts if settings.on_error == "restart" else 0


def _watched(settings: EnvConfig) -> bool:
    return settings.timeout is not None or _max_restarts(settings) > 0


def _check(settings: EnvConfig) -> None:
    """Raise ConfigError for what does not go together, whatever the environment turns out to be."""
    backend = settings.backend
    if backend in ("vector", "envpool") and settings.wrappers:
        raise ConfigError(f"env.wrappers: {backend} has no single copies to wrap; set env.backend to sync or async")
    if backend in ("vector", "envpool") and _watched(settings):
        raise ConfigError(
            f"env.timeout, env.on_error: {backend} steps all copies at once; set env.backend to sync or async"
        )
    if ale.is_atari(settings.id):
        ale.check_kwargs(settings.kwargs)
        if settings.max_episode_steps is not None:
            raise ConfigError("env.max_episode_steps: set env.atari.max_frames, which holds for every backend")


def _steps_all_at_once(spec: EnvSpec, settings: EnvConfig) -> bool:
    """Return whether the environment's own vectorised implementation is taken."""
    native = spec.vector_entry_point is not None and not spec.additional_wrappers
    chosen = settings.backend == "vector"
    if settings.backend == "auto":
        chosen = native and not _watched(settings) and not settings.wrappers
    if not chosen and spec.entry_point is None:
        raise ConfigError(
            f"env.backend: {settings.id} is a vector environment and steps its copies itself; set env.backend=vector, "
            "and no env.wrappers, env.timeout or env.on_error"
        )
    if chosen and not native:
        raise EnvironmentFault(f"env.backend: {settings.id} has no native vector implementation; use sync or async")
    return chosen


def _make_pool(settings: EnvConfig) -> VectorEnv:
    from lightning_ppo.envs.pool import EnvPoolVectorEnv

    task_id, kwargs = settings.id, copied(settings.kwargs)
    if ale.is_atari(task_id):
        task_id, kwargs = task_id.removeprefix(ale.NAMESPACE), ale.pool_settings(settings.atari) | kwargs
    if settings.max_episode_steps is not None:
        kwargs = arguments.with_own_limit(kwargs, settings.max_episode_steps)
    return EnvPoolVectorEnv(task_id, settings.num_envs, kwargs)


def _make_native(spec: EnvSpec, settings: EnvConfig) -> VectorEnv:
    if ale.is_atari(settings.id):
        spec = ale.native_spec(spec, settings.atari)
    entry_point, kwargs = spec.vector_entry_point, copied(settings.kwargs)
    kwargs = arguments.with_time_limit(settings.id, entry_point, kwargs, settings.max_episode_steps)
    arguments.check_time_limit(settings.id, entry_point, kwargs)
    return arguments.make_vec(spec, settings.num_envs, kwargs)


def _make_copies(
    spec: EnvSpec, settings: EnvConfig, stagger: bool, render_mode: str | None
) -> SyncVectorEnv | ProcessVectorEnv:
    kwargs, wrappers = copied(settings.kwargs), settings.wrappers
    if ale.is_atari(settings.id):
        protocol, preprocessing = ale.copy_settings(settings.atari)
        kwargs, wrappers = protocol | kwargs, [*preprocessing, *wrappers]
    arguments.check_time_limit(settings.id, spec.entry_point, kwargs)

    def build() -> gymnasium.Env:
        return arguments.make(spec, copied(kwargs), settings.max_episode_steps, render_mode)

    make, restarts = _maker(spec, build, wrappers, stagger, settings.scores == "innermost"), _max_restarts(settings)
    guards = [partial(GuardedEnv, make, index, settings.timeout, restarts) for index in range(settings.num_envs)]
    if settings.backend == "async":
        copies = [partial(_remembered, partial(guard, raises=False)) for guard in guards]
        return ProcessVectorEnv(copies, settings.timeout, restarts)
    env = SyncVectorEnv(guards, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    remember(env)
    return env


def _remembered(make: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    env = make()
    remember(env)
    return env


def _maker(
    spec: EnvSpec, build: Callable[[], gymnasium.Env], wrappers: Sequence[Any], stagger: bool, scored: bool
) -> Callable[[], gymnasium.Env]:
    def make() -> gymnasium.Env:
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
            _log_mujoco_warnings()
        env = build()
        # within the wrappers, which may repeat actions, unless one of them sets the limit
        within = stagger and time_limit(env) is not None
        if within:
            env = FirstEpisodeLimit(env)
        for entry in wrappers:
            env = instantiate(copied(entry), "env.wrappers", gymnasium.Wrapper, env)
        if stagger and not within:
            env = FirstEpisodeLimit(env)
        return innermost_score(env) if scored else env

    return make


def _log_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to the log, less the one that Gymnasium's own models cause in every environment."""
    import mujoco

    def receive(message: str) -> None:
        if "settotalmass" not in message:
            _log.warning("MuJoCo: %s", message)

    mujoco.set_mju_user_warning(receive)
