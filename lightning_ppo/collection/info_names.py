"""Which entries of infos are logged, the same on all ranks, and which of those asked for nobody has told."""

import logging
from collections.abc import Sequence

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lightning_ppo.envs.infos import AUTO, MOST
from lightning_ppo.rollout.shapes import Rollout
from lightning_ppo.support.distributed import gather_objects
from lightning_ppo.support.notices import warn_once
from lightning_ppo.support.program import program

_log = logging.getLogger(__name__)


class InfoNames:
    """Gives every rollout the same infos, and says once which they are, and which are missing.

    Args:
        log_info: See `EnvConfig.log_info`.
    """

    def __init__(self, log_info: Sequence[str] | str = ()) -> None:
        self.names: tuple[str, ...] | None = None if log_info == AUTO else tuple(log_info)
        self._untold = set(self.names or ())

    def __call__(self, rollout: Rollout) -> Rollout:
        """Return the rollout with the infos that are logged; call it on all ranks."""
        if self.names is None:
            found = gather_objects(list(rollout.infos))
            self.names = tuple(dict.fromkeys(name for names in found for name in names))[:MOST]
            shown = ", ".join(self.names) or "nothing, since the first step told no floating-point number"
            rank_zero_only(_log.info)(f"env.log_info=auto logs {shown}")
        if not self.names:
            return rollout
        rollout = rollout.with_infos(self.names)
        if self._untold:
            self._untold -= {name for name, values in rollout.infos.items() if not values.isnan().all()}
            if (rollout.terminations | rollout.truncations).any():
                say_missing(self._untold)
                self._untold = set()
        return rollout


@rank_zero_only
def say_missing(names: set[str]) -> None:
    """Say which entries no copy has told until the end of an episode."""
    for name in sorted(names):
        text = f"env.log_info: no info of a whole episode tells {name!r}; `{program()} check-env` lists what is told"
        warn_once(_log, text, text)
