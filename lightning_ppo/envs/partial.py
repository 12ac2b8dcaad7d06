"""Environments of which some are stepped in other processes."""

from typing import Any

from gymnasium.vector import VectorEnv, VectorWrapper

from lightning_ppo.support.errors import ConfigError


class PartOfEnvironments(VectorWrapper):
    """Shows spaces and numbers of a vector environment, but refuses changes that would reach only some environments.

    Args:
        env: What this process has.
        reached: How many of the environments that are stepped are in it.
        total: How many there are.
        setting: What keeps the others elsewhere.
        alone: Its value that brings them here.
    """

    def __init__(self, env: VectorEnv, reached: int, total: int, setting: str, alone: str) -> None:
        super().__init__(env)
        self._reached = f"{reached or 'none'} of {total if reached else 'the'} environments"
        self._remedy = f"others are in another process; set {setting}={alone}"

    def _refuse(self, name: str) -> ConfigError:
        return ConfigError(f"env.{name} would reach {self._reached} that are stepped, {self._remedy}")

    def __getattr__(self, name: str) -> Any:
        """Refuse single copies, in whatever way the vector environment keeps them."""
        if name == "envs":
            raise self._refuse(name)
        raise AttributeError(name)

    @property
    def unwrapped(self) -> VectorEnv:  # type: ignore[override]
        """This, since what is below reaches some environments only."""
        return self

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise self._refuse("call")

    def get_attr(self, name: str) -> Any:
        """Refuse."""
        raise self._refuse("get_attr")

    def set_attr(self, name: str, values: Any) -> None:
        """Refuse."""
        raise self._refuse("set_attr")
