"""Make changes in all copies of a vector environment, whoever steps them."""

from collections.abc import Iterable
from typing import Any

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from lightning_ppo.envs.changes import Change, Outcome, change_innermost, layers_within
from lightning_ppo.envs.faults import GuardedEnv
from lightning_ppo.envs.pool import EnvPoolVectorEnv
from lightning_ppo.envs.processes import ProcessVectorEnv
from lightning_ppo.envs.torch_envs import TorchVectorEnv
from lightning_ppo.support.errors import ConfigError, one_line

_SINGLE = "; env.backend=sync steps single copies, which may have one"


def make_changes(env: VectorEnv, changes: Iterable[Change]) -> None:
    """Set attributes and call methods of every copy, each in the innermost layer that has it.

    Copies come before the wrappers of vector environments.

    Args:
        env: The vector environment, as it was built.
        changes: What to do, in this order.

    Raises:
        ConfigError: If nothing has the attribute or method, it raises, or the copies cannot be reached.
        EnvironmentFault: If the process of a copy dies.
    """
    for change in changes:
        outcome = _change(env, change)
        if outcome.status != "made":
            raise ConfigError(f"{change}: {outcome.reason}")


def _change(env: VectorEnv, change: Change) -> Outcome:
    copies, layers = env.unwrapped, layers_within(env)
    if isinstance(copies, EnvPoolVectorEnv):
        return Outcome("failed", "EnvPool has nothing that can be set or called; set env.backend=sync or async")
    if not isinstance(copies, SyncVectorEnv | AsyncVectorEnv):
        outcome = change_innermost(layers, change)
        if outcome.status == "made" and isinstance(copies, TorchVectorEnv):
            copies.record_anew()
        native = outcome.status == "missing" and getattr(copies.spec, "entry_point", None) is not None
        return outcome._replace(reason=outcome.reason + _SINGLE) if native else outcome
    in_copies = _worst(_change_copies(copies, change))
    if in_copies.status != "missing" or len(layers) == 1:
        return in_copies
    outside = change_innermost(layers[:-1], change)
    return in_copies if outside.status == "missing" else outside


def _change_copies(copies: Any, change: Change) -> list[Outcome]:
    if isinstance(copies, ProcessVectorEnv):
        return copies.make_change(change)
    if isinstance(copies, SyncVectorEnv):
        return [
            copy.make_change(change) if isinstance(copy, GuardedEnv) else change_innermost(layers_within(copy), change)
            for copy in copies.envs
        ]
    return _change_gymnasiums(copies, change)


def _change_gymnasiums(copies: AsyncVectorEnv, change: Change) -> list[Outcome]:
    """Make a change in copies that processes of Gymnasium step, in the outermost layer that has it, as is its rule."""
    try:
        if not all(copies.call("has_wrapper_attr", change.name)):
            return [Outcome("missing", f"the copies of {type(copies).__name__} have no {change.name!r}")]
        if change.how == "set_attr":
            copies.set_attr(change.name, list(change.args) * copies.num_envs)
        else:
            copies.call(change.name, *change.args, **change.kwargs)
        return [Outcome("made")]
    except Exception as error:  # of the environment, which ends the process of the copy
        return [Outcome("failed", f"raised {type(error).__name__}: {one_line(error)}")]


def _worst(outcomes: list[Outcome]) -> Outcome:
    order = ("failed", "missing", "made")
    return min(outcomes, key=lambda outcome: order.index(outcome.status))
