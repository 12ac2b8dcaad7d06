"""The switch that turns every shortcut of this process off.

`PPO.setup` sets it from the setting `plain`, on each rank; processes that collect take it over. Callers of `speed` ask
`is_on` where they choose between a shortcut and its plain counterpart, so that with `plain` no shortcut runs at all.
"""

_on = True


def turn(on: bool) -> None:
    """Turn the shortcuts on or off."""
    global _on
    _on = on


def is_on() -> bool:
    """Return whether shortcuts are taken."""
    return _on
