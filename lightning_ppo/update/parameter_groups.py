"""Groups of parameters with a learning rate of their own, or frozen."""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_ppo.settings.algorithm import OptimizerConfig
from lightning_ppo.support.errors import ConfigError, nearest

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def freeze(named: NamedParameters, settings: OptimizerConfig) -> None:
    """Exclude the parameters of groups with the factor 0 from training."""
    for parameters, group in _members(list(named), settings):
        if group is not None and group.get("factor", 1.0) == 0.0:
            for _, parameter in parameters:
                parameter.requires_grad_(False)


def make_groups(named: NamedParameters, settings: OptimizerConfig, rate: float) -> list[Any]:
    """Return what an optimizer is built from: its groups, first of those parameters that no setting names.

    Args:
        named: The parameters by name.
        settings: Of the optimizer.
        rate: The learning rate that factors multiply.

    Raises:
        ConfigError: If a pattern matches no parameter that is left.
    """
    named = list(named)
    if not settings.groups:
        return [parameter for _, parameter in named]
    freeze(named, settings)
    groups: list[Any] = []
    for members, group in _members(named, settings):
        if group is None:
            groups.insert(0, {"params": [parameter for _, parameter in members]})
            continue
        if not members:
            pattern = group["parameters"]
            close = nearest(str(pattern), [name for name, _ in named])
            raise ConfigError(f"optimizer.groups: {pattern} matches no parameter that is left, such as {close}")
        factor = group.get("factor", 1.0)
        if factor:
            parameters = [parameter for _, parameter in members]
            groups.append({"params": parameters, "lr": rate * factor, **group.get("init_args", {})})
    return [group for group in groups if group["params"]]


def check_options(optimizer: Optimizer, settings: OptimizerConfig) -> None:
    """Raise ConfigError for an argument of a group that the optimizer would ignore."""
    for group in settings.groups:
        for name in group.get("init_args", {}):
            if name not in optimizer.defaults:
                known = ", ".join(sorted(set(optimizer.defaults) - {"lr"}))
                kind = type(optimizer).__name__
                raise ConfigError(f"optimizer.groups: {kind} has no argument {name} for a group; it has {known}")


def split(settings: Sequence[dict[str, Any]]) -> list[tuple[Any, bool]]:
    """Return which parameters have state of their own: the patterns of groups, and whether they are frozen."""
    return [(group["parameters"], group.get("factor", 1.0) == 0.0) for group in settings]


def _members(
    named: list[tuple[str, nn.Parameter]], settings: OptimizerConfig
) -> Iterator[tuple[list[tuple[str, nn.Parameter]], dict[str, Any] | None]]:
    """Yield the members of each group, the first that matches, and those of none last, with None."""
    for group in settings.groups:
        patterns = group["parameters"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        members = [item for item in named if any(fnmatchcase(item[0], pattern) for pattern in patterns)]
        taken = {name for name, _ in members}
        named = [item for item in named if item[0] not in taken]
        yield members, group
    yield named, None
