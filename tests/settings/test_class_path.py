"""What a class path may name."""

import pytest
from torch import nn

from lightning_ppo.settings.class_path import Registry, instantiate, load_class
from lightning_ppo.support.errors import ConfigError

CALLED: list[str] = []


class Stranger:
    """Derives from nothing that is asked for."""

    def __init__(self) -> None:
        CALLED.append("stranger")


class Layer(nn.Identity):
    """Derives from what is asked for."""


def make_stranger() -> Stranger:
    return Stranger()


HERE = __name__


def test_a_class_of_another_kind_is_refused_before_it_is_called():
    CALLED.clear()
    with pytest.raises(ConfigError, match=r"policy\.core: .*Stranger is no torch\.Module"):
        load_class(f"{HERE}.Stranger", "policy.core", nn.Module)
    for entry in (f"{HERE}.Stranger", Stranger, {"class_path": f"{HERE}.Stranger", "init_args": {}}):
        with pytest.raises(ConfigError, match=r"policy\.core: .*Stranger.* is no torch\.Module"):
            instantiate(entry, "policy.core", nn.Module)
        with pytest.raises(ConfigError, match=r"policy\.core: .*Stranger.* is no torch\.Module"):
            Registry("policy.core", "torch.nn.Module", {}).instantiate(entry)
    assert CALLED == []


def test_a_function_that_makes_another_kind_is_named():
    with pytest.raises(ConfigError, match=r"policy\.core: .* makes a Stranger, expected a Module"):
        instantiate(make_stranger, "policy.core", nn.Module)


def test_what_is_no_class_is_refused():
    for path, reason in ((f"{HERE}.CALLED", "is no torch"), (f"{HERE}.Nobody", "cannot import"), ("word", "cannot")):
        with pytest.raises(ConfigError, match=rf"policy\.core: .*{reason}"):
            load_class(path, "policy.core", nn.Module)


def test_a_class_of_the_kind_is_built():
    assert type(instantiate(f"{HERE}.Layer", "policy.core", nn.Module)) is Layer
    assert type(Registry("policy.core", "torch.nn.Module", {"layer": f"{HERE}.Layer"}).instantiate("layer")) is Layer
