"""Scores: the rewards of the environment inside all wrappers, whatever the wrappers change.

The agent learns from the outermost reward. Scores are added to infos.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorRewardWrapper, VectorWrapper
from gymnasium.wrappers import vector as vector_wrappers
from torch import Tensor

from lightning_ppo.envs.declared import NOTICE
from lightning_ppo.support.notices import warn_once

_log = logging.getLogger(__name__)

SCORE = "lightning_ppo.score"
"""Info of a step: the reward of the innermost environment."""

_SCALING = (gymnasium.RewardWrapper, wrappers.NormalizeReward, VectorRewardWrapper, vector_wrappers.NormalizeReward)
_PASSING = (gymnasium.Wrapper, gymnasium.ObservationWrapper, gymnasium.ActionWrapper, VectorWrapper)
_SPREAD = re.compile(r"(mean|means|var|variance|std|rms|m2)$")
_RUNNING = re.compile(r"^(running|moving|ema)|count$|^n$")


def innermost_score(env: gymnasium.Env) -> gymnasium.Env:
    """Return a copy whose steps report the innermost reward, if a wrapper may change it."""
    layers = list(_layers(env))
    if not any(_changes_rewards(layer) for layer in layers):
        return env
    heard = _Heard(layers[-1].env)
    layers[-1].env = heard
    return _Scored(env, heard)


def notices_of(env: gymnasium.Env | VectorEnv) -> list[str]:
    """Return a sentence on each wrapper that keeps statistics of its own."""
    return [_statistics(type(layer).__name__) for layer in _layers(env) if _keeps_moments(layer)]


def built_by_hand(env: VectorEnv, innermost: bool) -> VectorEnv:
    """Return a vector environment built by the user whose steps tell the innermost rewards, where it can be known.

    Args:
        env: The vector environment; its wrappers are told to listen to what they wrap.
        innermost: Whether scores are to be told; else only wrappers that keep statistics are named.
    """
    said, copies = notices_of(env), env.unwrapped
    if isinstance(copies, SyncVectorEnv):
        said += [text for copy in copies.envs for text in notices_of(copy)]
        if innermost:
            copies.envs[:] = [innermost_score(copy) for copy in copies.envs]
    elif type(copies) is AsyncVectorEnv:
        said.append(
            "has copies in other processes, which convert what they return to the declared dtype before anyone can "
            "check it; name the environment in env.id to have it checked"
        )
        named = re.findall(r"<(\w+)", copies.call("__str__")[0])
        said += [_statistics(name) for name in named if name in ("NormalizeReward", "NormalizeObservation")]
        changed = [name for name in named if name in ("NormalizeReward", "ClipReward", "TransformReward")]
        if changed and innermost:
            said.append(
                f"has copies in other processes whose {', '.join(changed)} change rewards: returns are of these; "
                "name the environment and its wrappers in env.id and env.wrappers for returns of the environment itself"
            )
    for text in said:
        warn_once(_log, text, f"the environment {text}")
    layers = list(_layers(env))
    if not innermost or not any(_changes_rewards(layer) for layer in layers):
        return env
    heard = _HeardVector(layers[-1].env)
    layers[-1].env = heard
    return _ScoredVector(env, heard)


def _layers(env: Any) -> Iterator[Any]:
    """Yield the wrappers, the outermost first."""
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        yield env
        env = env.env


def _changes_rewards(layer: Any) -> bool:
    """Return whether a wrapper may; those of Gymnasium are known, and so are ours."""
    if isinstance(layer, _Scored | _ScoredVector):
        return False
    if type(layer).__module__.startswith(("gymnasium.", "lightning_ppo.")):
        return isinstance(layer, _SCALING)
    return not any(type(layer).step is base.step for base in _PASSING)


def _keeps_moments(layer: Any) -> bool:
    """Return whether a wrapper has a running mean or variance, as attributes or in an object that is one."""
    for holder in (layer, *vars(layer).values()):
        if holder is not layer and isinstance(holder, gymnasium.Env | VectorEnv | gymnasium.Space | type):
            continue
        names = [name.strip("_").lower() for name in getattr(holder, "__dict__", {})]
        running = callable(getattr(holder, "update", None)) or any(_RUNNING.search(name) for name in names)
        if running and any(_SPREAD.search(name) for name in names):
            return True
    return False


def _statistics(name: str) -> str:
    settings = {"obs": "normalize.observations", "reward": "normalize.rewards"}
    fitting = [setting for part, setting in settings.items() if part in name.lower()] or list(settings.values())
    return (
        f"has the wrapper {name}, which keeps statistics of its own: evaluations start from fresh ones; leave it out "
        f"and set {' or '.join(fitting)}, whose statistics are the agent's"
    )


class _Heard(gymnasium.Wrapper):
    """Adds up the rewards of the environment that it wraps; otherwise it is transparent."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.sum = 0.0

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        with contextlib.suppress(TypeError, ValueError, IndexError):  # what is no reward is somebody else's to report
            self.sum += float(result[1])
        return result

    def take(self) -> float:
        """Return the sum since this was last called."""
        taken, self.sum = self.sum, 0.0
        return taken


class _Scored(gymnasium.Wrapper):
    """Reports the rewards of the innermost environment, including frames that wrappers skip."""

    def __init__(self, env: gymnasium.Env, heard: _Heard) -> None:
        super().__init__(env)
        self._take = heard.take
        self._noted = False

    def reset(self, **kwargs: Any) -> Any:
        """Start an episode; what wrappers do meanwhile is not scored, as it is not learnt from."""
        result = self.env.reset(**kwargs)
        self._take()
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        score = self._take()
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
            return result
        observation, reward, terminated, truncated, info = result
        info = {**info, SCORE: score}
        if not self._noted and not (terminated or truncated) and _differ(reward, score):
            self._noted = True
            info[NOTICE] = _changed(self.env)
        return observation, reward, terminated, truncated, info


class _HeardVector(VectorWrapper):
    """Keeps the rewards of the vector environment that it wraps, or what its copies tell."""

    rewards: Any = None

    def step(self, actions: Any) -> Any:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        self.rewards = rewards.clone() if isinstance(rewards, Tensor) else np.array(rewards)
        return observations, rewards, terminations, truncations, infos


class _ScoredVector(VectorWrapper):
    """Reports the rewards of the innermost vector environment."""

    def __init__(self, env: VectorEnv, heard: _HeardVector) -> None:
        super().__init__(env)
        self._rewards = lambda: heard.rewards
        self._noted = False

    def step(self, actions: Any) -> Any:
        *result, infos = self.env.step(actions)
        if SCORE not in infos and SCORE not in infos.get("final_info", {}):
            infos = {**infos, SCORE: self._rewards()}
        if not self._noted:
            self._noted = True
            warn_once(_log, _changed(self.env), f"the environment {_changed(self.env)}")
        return *result, infos


def _differ(reward: Any, score: float) -> bool:
    try:
        return bool(abs(float(reward) - score) > 1e-6 * max(1.0, abs(score)))
    except (TypeError, ValueError):
        return False


def _changed(env: Any) -> str:
    names = ", ".join(type(layer).__name__ for layer in _layers(env) if _changes_rewards(layer))
    return (
        f"has wrappers that change rewards ({names}): these are learnt from, and returns are reported of the innermost "
        f"environment, {type(env.unwrapped).__name__} (env.scores=outermost reports what is learnt from)"
    )


def tensor_scores(rewards: Tensor, infos: dict[str, Any]) -> Tensor | None:
    """Return the scores (N,) of a step of tensors; where they are arrays, an environment of NumPy is within."""
    given = infos.get(SCORE)
    if given is None or isinstance(given, Tensor):
        return given
    return torch.as_tensor(scores_of(rewards.cpu().numpy(), infos), device=rewards.device)


def scores_of(rewards: np.ndarray, infos: dict[str, Any]) -> np.ndarray | None:
    """Return the scores (N,) of a step, those of ended episodes among them; None where nobody tells any."""
    found = [part for part in (infos, infos.get("final_info")) if isinstance(part, dict) and SCORE in part]
    if not found:
        return None
    scores = np.array(rewards, dtype=np.float64)
    for part in found:
        given = part.get(f"_{SCORE}", np.ones(len(scores), np.bool_))
        scores[given] = np.asarray(part[SCORE])[given]
    return scores
