"""Whether what goes on is what would have been: values, agents, environments, run directories."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from lightning_ppo import PPO
from lightning_ppo.envs import get_env_state, set_env_state


def timeless_rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def agent(path: Path) -> dict:
    """Return the parts of a checkpoint that do not depend on the clock or on how often the run was started."""
    content = torch.load(path, weights_only=True)
    return {k: content[k] for k in ("state_dict", "optimizer_states", "ppo", "RolloutDataModule", "global_step")}


def same(one, other) -> bool:
    """Return whether plain data are equal to the last bit; NaN, which stands for what nobody told, equals itself."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
    return one == other or (one != one and other != other)


def differences(reference: Path, run_dir: Path) -> list[str]:
    """Return what of a run is not as in the undisturbed one."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (agent(path / "checkpoints" / name) for path in (run_dir, reference))
        found += [f"{name}: {key}" for key in theirs if not same(ours[key], theirs[key])]
    if timeless_rows(run_dir) != timeless_rows(reference):
        found.append("metrics.csv: rows differ")
    leftovers = [p.name for p in (run_dir / "checkpoints").iterdir() if p.suffix == ".tmp"]
    return found + leftovers


def assert_same_agent(one: PPO, one_trainer: pl.Trainer, two: PPO, two_trainer: pl.Trainer) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    moments = [t.optimizers[0].state_dict() for t in (one_trainer, two_trainer)]
    assert moments[0]["param_groups"] == moments[1]["param_groups"]
    for index, state in moments[0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, moments[1]["state"][index][name]), (index, name)
    assert one.env_steps == two.env_steps and one.iterations == two.iterations
    assert list(one.recent_returns) == list(two.recent_returns)
    assert one_trainer.global_step == two_trainer.global_step


class MidEpoch(pl.Callback):
    """Saves after a given iteration, inside an epoch, and stops there."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path, self.iteration = path, iteration

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.iterations == self.iteration:
            trainer.save_checkpoint(self.path)
            raise KeyError("stop here")


class Planted:
    """Would create a file if it were unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return (os.mkdir, (str(self.sentinel),))


def reloaded(state):
    """Return `state` as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def play(env, actions):
    """Return everything that stepping with `actions` shows, and whether an episode ended."""
    seen, ended = [], False
    for action in actions:
        observations, rewards, terminations, truncations, infos = env.step(action)
        ended |= bool((terminations | truncations).any())
        final = [np.array(f) for f in infos.get("final_obs", ()) if f is not None]
        seen += [np.array(x) for x in (observations, rewards, terminations, truncations, *final)]
    return seen, ended


def assert_resumes(make, before, after):
    """Save after `before` steps, go on, restore into a new environment, and go on there: both must see the same.

    Episodes must end on both sides of the save, so that step counters and random generators matter.
    """
    env = make()
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(before + after)]
    env.reset(seed=1)
    assert play(env, actions[:before])[1]
    state, reason = get_env_state(env)
    assert state is not None, reason
    expected, ended = play(env, actions[before:])
    assert ended
    # serialised only now: the saved state must not have moved with the environment
    state = reloaded(state)
    env = make()
    env.reset(seed=2)
    set_env_state(env, state)
    seen, _ = play(env, actions[before:])
    assert len(seen) == len(expected)
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
