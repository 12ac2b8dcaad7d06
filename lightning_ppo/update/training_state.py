"""The training state in checkpoints besides weights and optimizers: counters, recent episodes, random states."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.settings.hyperparameters import plain
from lightning_ppo.settings.trust import signature_of
from lightning_ppo.speed.internals import is_launched, trainer_of
from lightning_ppo.support.distributed import gather_objects, rank, world_size
from lightning_ppo.support.errors import CheckpointError
from lightning_ppo.support.randomness import get_random_state, set_random_state
from lightning_ppo.update.optimizers import check_same_kind

if TYPE_CHECKING:
    from lightning_ppo.update.ppo import PPO

RETURN_WINDOW = 100
"""Training episodes, of all ranks, over which returns and lengths are averaged."""


class RecentEpisodes:
    """The training episodes of this rank that ended last.

    Attributes:
        returns: Of each.
        lengths: Of each.
        successes: Whether each has reached its goal, NaN where the environment does not say.
        infos: Sums of what `env.log_info` names, NaN where it was not told.
    """

    def __init__(self) -> None:
        self.returns: deque[float] = deque(maxlen=RETURN_WINDOW)
        self.lengths: deque[float] = deque(maxlen=RETURN_WINDOW)
        self.successes: deque[float] = deque(maxlen=RETURN_WINDOW)
        self.infos: dict[str, deque[float]] = {}

    def keep_share(self) -> None:
        """Keep this rank's share of the window."""
        share = -(-RETURN_WINDOW // world_size())
        self.returns = deque(self.returns, maxlen=share)
        self.lengths = deque(self.lengths, maxlen=share)
        self.successes = deque(self.successes, maxlen=share)
        self.infos = {name: deque(window, maxlen=share) for name, window in self.infos.items()}

    def add(self, episodes: Episodes) -> None:
        """Take in the episodes that ended within a rollout."""
        self.returns.extend(episodes.returns.tolist())
        self.lengths.extend(episodes.lengths.tolist())
        self.successes.extend(episodes.successes.tolist())
        for name, sums in episodes.info_sums.items():
            self.infos.setdefault(name, deque(maxlen=self.returns.maxlen)).extend(sums.tolist())

    def sums(self) -> tuple[float, float, int]:
        """Return the sum of returns, the sum of lengths and the number of episodes."""
        return sum(self.returns), sum(self.lengths), len(self.returns)

    def told(self, names: Sequence[str]) -> list[float]:
        """Return sum and number of what was told of successes, and of the infos of these names, one after the other."""
        windows = [self.successes, *(self.infos.get(name, ()) for name in names)]
        known = [[value for value in window if value == value] for window in windows]
        return [number for values in known for number in (sum(values), len(values))]

    def state_dict(self) -> dict[str, Any]:
        """Return the window as plain data."""
        windows = {name: list(getattr(self, name)) for name in ("returns", "lengths", "successes")}
        infos = {name: list(window) for name, window in self.infos.items()}
        return {f"recent_{name}": window for name, window in windows.items()} | {"recent_infos": infos}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the window by one that was saved."""
        for name in ("returns", "lengths", "successes"):
            window = getattr(self, name)
            window.clear()
            window.extend(state.get(f"recent_{name}", ()))
        saved = state.get("recent_infos", {})
        self.infos = {name: deque(window, maxlen=self.returns.maxlen) for name, window in saved.items()}


def save(module: "PPO", checkpoint: dict[str, Any]) -> None:
    """Add counters, episodes and random states, make settings plain data, and sign what they name."""
    for key in (pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, pl.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY):
        if key in checkpoint:
            checkpoint[key], _ = plain(checkpoint[key])
    budget = module.budget
    checkpoint["ppo"] = {
        "env_steps": budget.env_steps,
        "iterations": budget.iterations,
        "begun_at": budget.begun_at,
        "time_share": budget.time_share,
        "evaluation_steps": module.evaluation_results.env_steps,
        "std_decay": module.std_decay,
        "action_masks": module.action_masks,
        "ranks": gather_objects(
            module.recent_episodes.state_dict() | {"shuffle": module.shuffle.get_state(), "random": get_random_state()}
        ),
    }
    checkpoint["ppo"]["signature"] = signature_of(checkpoint)


def restore(module: "PPO", checkpoint: Mapping[str, Any]) -> None:
    """Take counters, episodes and, inside `fit`, random states from a checkpoint."""
    if "ppo" not in checkpoint:
        raise CheckpointError("not a checkpoint of lightning_ppo")
    state, trainer = checkpoint["ppo"], trainer_of(module)
    if trainer is not None and trainer.precision == "64-true":
        module.double()  # as Lightning does, but only after it has restored, and rounded, the weights
    budget = module.budget
    budget.env_steps, budget.iterations = state["env_steps"], state["iterations"]
    budget.begun_at = state.get("begun_at", 0)
    budget.time_share = state.get("time_share", 0.0)
    module.evaluation_results.env_steps = state.get("evaluation_steps", 0)
    module.std_decay = state.get("std_decay", 0.0)
    module.action_masks = state.get("action_masks", False)
    module.policy.version = budget.iterations
    same_ranks = len(state["ranks"]) == world_size()
    own = state["ranks"][rank() if same_ranks else 0]
    module.recent_episodes.load_state_dict(own)
    if trainer is not None and trainer.training and "optimizer_states" in checkpoint:
        hyper_parameters = checkpoint.get(pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
        check_same_kind(hyper_parameters.get("optimizer") or {}, module.optimizer_settings)
    if trainer is not None and trainer.training and same_ranks:
        module.shuffle.set_state(own["shuffle"])
        set_random_state(own["random"])


def send_home(module: "PPO") -> None:
    """In a process that a Trainer has launched, have the weights that it sends home bring the training state along."""
    if is_launched(module.trainer):
        module.register_state_dict_post_hook(_add_state)


def _add_state(module: "PPO", state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    if not prefix:
        save(module, state_dict)
