"""The training environments of a process, to look at; what is to be changed goes to all of them, wherever they are."""

from collections.abc import Callable
from typing import Any

from gymnasium.vector import VectorEnv, VectorWrapper

from lightning_ppo.support.errors import ConfigError


class ShownEnvironments(VectorWrapper):
    """Shows a vector environment, but lets nobody change only some of all environments.

    Args:
        env: What this process has.
        set_attr: Sets an attribute of all environments, wherever they are stepped.
        total: How many are stepped.
        reached: How many of them are in `env`.
        setting: What keeps the others elsewhere.
        alone: Its value that brings them here.
    """

    _made = False

    def __init__(
        self,
        env: VectorEnv,
        set_attr: Callable[[str, Any], None],
        total: int,
        reached: int,
        setting: str = "",
        alone: str = "",
    ) -> None:
        super().__init__(env)
        self._set_all = set_attr
        self._missing = ""
        if reached < total:
            which = f"{reached or 'none'} of {total if reached else 'the'} environments that are stepped"
            self._missing = f"would reach {which}, others are in another process; set {setting}={alone}"
        self._made = True

    def _check_whole(self, name: str) -> None:
        if self._missing:
            raise ConfigError(f"env.{name} {self._missing}, or change all with datamodule.set_attr or datamodule.call")

    def __getattr__(self, name: str) -> Any:
        """Show what the vector environment has, its copies only where all of them are here."""
        if name.startswith("__") or name == "env":
            raise AttributeError(name)
        if name == "envs":
            self._check_whole(name)
        return getattr(self.env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would change nothing but this view."""
        if self._made and not name.startswith("_"):
            raise ConfigError(f"datamodule.env.{name}: to be looked at; datamodule.set_attr({name!r}, value) sets it")
        super().__setattr__(name, value)

    @property
    def unwrapped(self) -> Any:
        """The environment itself; this, where it is some environments only."""
        return self if self._missing else self.env.unwrapped

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return what a method of each copy returns."""
        return self._ask("call", name, *args, **kwargs)

    def get_attr(self, name: str) -> Any:
        """Return an attribute of each copy."""
        return self._ask("get_attr", name)

    def _ask(self, method: str, name: str, *args: Any, **kwargs: Any) -> Any:
        self._check_whole(method)
        ask = getattr(self.env.unwrapped, method, None)
        if ask is None:
            base = type(self.env.unwrapped).__name__
            raise ConfigError(
                f"env.{method}({name!r}): {base} has no single copies to ask; datamodule.set_attr and datamodule.call "
                "change all of them, env.backend=sync steps single ones"
            )
        return ask(name, *args, **kwargs)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute in all environments, wherever they are stepped, as `RolloutDataModule.set_attr` does."""
        if isinstance(values, list | tuple):
            raise ConfigError(
                f"env.set_attr({name!r}): a list is one value for each copy here, and other copies may be elsewhere; "
                f"datamodule.set_attr({name!r}, value) sets one value in all of them"
            )
        self._set_all(name, values)
