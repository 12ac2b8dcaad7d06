"""Try an environment out and say what training will meet: one finding for each property that matters."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from lightning_ppo.envs import make_vector_env
from lightning_ppo.envs.declared import named
from lightning_ppo.envs.faults import close_env
from lightning_ppo.envs.infos import SUCCESS
from lightning_ppo.envs.masks import observed_space
from lightning_ppo.envs.state import get_env_state
from lightning_ppo.evaluation.walk import Walk
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support import notices
from lightning_ppo.support.env_specs import find_spec
from lightning_ppo.support.errors import UserError
from lightning_ppo.support.randomness import get_random_state, own_generators

COPIES = 2
REPEATED = 200
"""Steps that are made twice, to see whether they come to the same."""
LARGE, SMALL = 1e3, 1e-3
"""Sizes of numbers from which on, and below which, whoever learns from them has to scale them."""


class Finding(NamedTuple):
    """What was found about one property."""

    level: str
    """`ok`, `note`, `warn`, or `fail` where training cannot work."""
    topic: str
    text: str


def examine(settings: EnvConfig, steps: int = 1000, seed: int = 0) -> Iterator[Finding]:
    """Step two copies of an environment with an untrained policy, and yield what was found, in order.

    Args:
        settings: Which environment, and how it is stepped.
        steps: Of each copy.
        seed: Of environments and actions.
    """
    settings = replace(settings, num_envs=COPIES, stagger=False, on_error="stop")
    notices.forget()
    heard: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(own_generators(seed))
        stack.enter_context(_listening(heard))
        try:
            env = stack.enter_context(_built(settings))
            yield Finding("ok", "build", f"{settings.id} as {type(env.unwrapped).__name__} of {COPIES} copies")
            yield Finding(
                "ok", "spaces", f"shows {named(env.single_observation_space)}, takes {named(env.single_action_space)}"
            )
            policy = _untrained(env, settings)
            walk = Walk(env, policy, settings, seed)
            walk.go(steps)
        except UserError as error:
            yield Finding("fail", "contract", str(error))
            return
        yield from (Finding("warn", "contract", text) for text in heard)
        if not heard:
            yield Finding("ok", "contract", "what it returns is what its spaces declare")
        yield from _of_episodes(walk, settings)
        yield _of_rewards(walk)
        yield from _of_observations(walk)
        yield from _of_infos(walk)
        yield Finding(
            "ok",
            "time",
            f"{_duration(walk.step_seconds)} a step of one copy, {_duration(walk.reset_seconds)} a reset of all",
        )
        try:
            repeated = list(_of_repetition(settings, policy, walk, seed))
            yield from repeated
            if not any(finding.level == "warn" for finding in repeated):
                yield _of_resuming(settings, policy, walk, seed)
        except UserError as error:
            yield Finding("fail", "repetition", f"a second environment fails: {error}")


@contextmanager
def _listening(heard: list[str]) -> Iterator[None]:
    """Take in the lines that are said about environments instead of printing them."""
    log = logging.getLogger("lightning_ppo")

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                heard.append(record.getMessage())

    handler, before = Hears(), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before


@contextmanager
def _built(settings: EnvConfig) -> Iterator[VectorEnv]:
    env = make_vector_env(settings)
    try:
        yield env
    finally:
        close_env(env)


def _untrained(env: VectorEnv, settings: EnvConfig) -> ActorCritic:
    space = observed_space(env.single_observation_space, settings.action_mask)
    return ActorCritic(space, env.single_action_space, PolicyConfig(), NormalizeConfig()).eval()


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"


def _of_episodes(walk: Walk, settings: EnvConfig) -> Iterator[Finding]:
    steps = f"{len(walk.rewards):,} steps of {walk.env.num_envs} copies"
    limit = settings.max_episode_steps or getattr(walk.env.unwrapped, "max_episode_steps", None)
    if limit is None and settings.backend != "envpool":
        limit = find_spec(settings.id).max_episode_steps
    if not walk.lengths and limit:
        yield Finding("note", "episodes", f"none ended in {steps}; the time limit is {limit:,} steps")
        return
    if not walk.lengths:
        text = f"none ended in {steps}; without a time limit (env.max_episode_steps) evaluations may never end"
        yield Finding("warn", "episodes", text)
        return
    shortest, longest = min(walk.lengths), max(walk.lengths)
    lengths = f"{shortest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
    ends = f"{walk.terminations:,} terminated, {walk.truncations:,} truncated"
    yield Finding("ok", "episodes", f"{len(walk.lengths):,} in {steps}: {ends}, of {lengths} steps")
    if longest == 1:
        yield Finding("warn", "episodes", "every one has a single step, so that nothing of its future can be learnt")
    elif walk.terminations == len(walk.lengths) and shortest == longest:
        text = (
            f"every one terminates after {longest:,} steps; where that is a time limit, end them as truncated, so that "
            "values look beyond it"
        )
        yield Finding("warn", "episodes", text)


def _of_rewards(walk: Walk) -> Finding:
    rewards = np.stack(walk.rewards)
    rewards = rewards[~np.isnan(rewards)]  # a filler row is no step
    text = f"from {rewards.min():.4g} to {rewards.max():.4g}, on average {rewards.mean():.4g}"
    largest = float(np.abs(rewards).max())
    if largest == 0.0:
        return Finding("warn", "rewards", "all 0 with an untrained policy; nothing is learnt until one is met")
    if largest > LARGE or largest < SMALL:
        text += "; normalize.rewards, on by default, scales them; without it bring them to about 1"
        return Finding("warn", "rewards", text)
    return Finding("ok", "rewards", text)


def _of_observations(walk: Walk) -> Iterator[Finding]:
    low = min(float(least.min()) for least, _ in walk.extremes)
    high = max(float(most.max()) for _, most in walk.extremes)
    features = sum(least.shape[1] for least, _ in walk.extremes)
    still = sum(int((least.min(0) == most.max(0)).sum()) for least, most in walk.extremes)
    text = f"from {low:.4g} to {high:.4g} in {features:,} features"
    if max(abs(low), abs(high)) > LARGE:
        text += "; normalize.observations, on by default, scales them; without it bring them to about 1"
        yield Finding("warn", "observations", text)
    else:
        yield Finding("ok", "observations", text)
    if still == features:
        yield Finding("warn", "observations", "no feature ever changes")
    elif still:
        yield Finding("note", "observations", f"{still:,} of {features:,} features never change")


def _of_infos(walk: Walk) -> Iterator[Finding]:
    if walk.infos.tells_success:
        yield Finding("ok", "info", f"tells {SUCCESS}, of which the rate is logged")
    names = ",".join(walk.infos.found)
    if names:
        yield Finding("ok", "info", f"numbers that can be logged: env.log_info=[{names}]")
    elif not walk.infos.tells_success:
        yield Finding("note", "info", f"tells no numbers and no {SUCCESS}, so nothing of it can be logged")


def _of_repetition(settings: EnvConfig, policy: ActorCritic, walk: Walk, seed: int) -> Iterator[Finding]:
    """Make the first steps again with the same seed, and with another."""
    before = _global_state()
    with _built(settings) as env:
        again = Walk(env, policy, settings, seed)
        again.go(min(REPEATED, len(walk.rewards)))
    drawn = [name for name, state in _global_state().items() if state != before[name]]
    with _built(settings) as env:
        other = Walk(env, policy, settings, seed + 1)
    if again.digests[0] != walk.digests[0]:
        yield Finding("warn", "seeds", "reset(seed) does not decide the first observation: runs cannot be repeated")
    elif other.digests[0] == walk.digests[0]:
        yield Finding("note", "seeds", "episodes begin alike whatever the seed")
    else:
        yield Finding("ok", "seeds", "reset(seed) decides how episodes begin")
    pairs = zip(again.digests, walk.digests, strict=False)
    different = next((step for step, (one, two) in enumerate(pairs) if one != two), None)
    if different is None:
        yield Finding("ok", "determinism", f"the same seed and actions give the same {len(again.rewards):,} steps")
    elif different:
        text = f"the same seed and actions part at step {different:,}: runs cannot be repeated bit for bit"
        yield Finding("warn", "determinism", text)
    if drawn:
        text = f"draws from the global generators of {', '.join(drawn)}; self.np_random is seeded by reset(seed)"
        yield Finding("note", "determinism", text)


def _global_state() -> dict[str, Any]:
    state = get_random_state()
    return {
        "torch": state["torch"].tolist(),
        "NumPy": (state["numpy"]["key"].tolist(), state["numpy"]["pos"]),
        "Python": state["python"],
    }


def _of_resuming(settings: EnvConfig, policy: ActorCritic, walk: Walk, seed: int) -> Finding:
    """Go on from a saved state in another environment."""
    state = walk.stepper.state_dict()
    state["env"], state["reason"] = get_env_state(walk.env)
    if state["env"] is None:
        return Finding(
            "note", "resuming", f"episodes restart: {state['reason']}; get_state() and set_state(state) mend it"
        )
    ahead = min(REPEATED, len(walk.rewards))
    with _built(settings) as env:
        other = Walk(env, policy, settings, seed + 2)
        reason = other.stepper.resume(state)
        if reason:
            return Finding("warn", "resuming", f"its state is saved but cannot be restored: {reason}")
        found: list[list[int]] = []
        for one in (walk, other):
            one.generator.manual_seed(seed)
            with own_generators(seed):
                one.go(ahead)
            found.append(one.digests[-ahead:])
    size = sum(leaf.nbytes for leaf in _tensors(state["env"]))
    different = next((step for step, (one, two) in enumerate(zip(*found, strict=True), 1) if one != two), None)
    if different is not None:
        text = f"a restored environment goes another way from step {different:,} on: some of its state is not saved"
        return Finding("fail", "resuming", text)
    return Finding(
        "ok", "resuming", f"exact: a restored environment makes the same {ahead:,} steps; {size:,} bytes of state"
    )


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(child)
