"""Evaluations that no setting times: after the first epoch and the last, and for a tenth of the steps between them."""

import csv
import json
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import pytorch_lightning as pl
from gymnasium import spaces
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_ppo import train
from lightning_ppo.run.stopping import GracefulStop, Interrupted

LENGTH = 9


class Fixed(gymnasium.Env):
    """Episodes of `LENGTH` steps, each of reward 1."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.zeros(1, np.float32), 1.0, False, self.t >= LENGTH, {}


# an epoch makes 2 x 8 steps of the environments and 2 of the optimizer, 18 in all, and 32 environment steps;
# an evaluation of 4 episodes makes 36 / 2 = 18, so 10 epochs earn one
EPOCH = 32
SETTINGS = {
    "env": {"id": f"{__name__}:Fixed", "num_envs": 2, "backend": "sync", "stagger": False},
    "rollout": {"num_steps": 8},
    "update": {"epochs": 1, "minibatch_size": 16},
    "policy": {"hidden_sizes": [4]},
    "rollouts_per_epoch": 2,
    "evaluation": {"episodes": 4, "final_episodes": 0, "num_envs": 2},
    "total_env_steps": 25 * EPOCH,
    "trainer": {"enable_progress_bar": False},
}


def evaluated(run_dir) -> list[int]:
    """Return the epochs after which a run was evaluated."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return [int(row["step"]) // EPOCH for row in csv.DictReader(file) if row.get("eval/return_mean")]


def changed(**settings: Any) -> dict[str, Any]:
    """Return SETTINGS with other values in their sections."""
    sections = {key: value | settings.pop(key, {}) for key, value in SETTINGS.items() if isinstance(value, dict)}
    return SETTINGS | sections | settings


def test_between_the_first_epoch_and_the_last_a_tenth_of_the_steps_is_evaluation(tmp_path):
    train(SETTINGS | {"run_dir": str(tmp_path)})
    assert evaluated(tmp_path) == [1, 10, 20, 25]


def test_more_copies_than_are_trained_on_count_more(tmp_path):
    """4 copies beside 2 play in half the steps, each of which takes as long as two."""
    train(changed(evaluation={"num_envs": 4}) | {"run_dir": str(tmp_path)})
    assert evaluated(tmp_path) == [1, 10, 20, 25]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"evaluation": {"every_n_epochs": 1}}, list(range(1, 6))),
        ({"evaluation": {"every_n_epochs": 2}}, [2, 4]),
        ({"trainer": {"check_val_every_n_epoch": 3}}, [3]),
        ({"trainer": {"val_check_interval": 1}}, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        ({"trainer": {"limit_val_batches": 0}}, []),
        ({"evaluation": {"episodes": 0}}, []),
        ({"trainer": {"max_epochs": 3}}, [1, 3]),
    ],
)
def test_a_setting_rules(settings, expected, tmp_path):
    train(changed(total_env_steps=5 * EPOCH, **settings) | {"run_dir": str(tmp_path)})
    assert evaluated(tmp_path) == expected


class StopAt(Callback):
    """Behaves as if a signal had come in an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.iterations + 1 == self.iteration:
            (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))
            stop._receive(15, None)


@pytest.mark.parametrize("iteration", [19, 21, 22])
def test_a_resumed_run_is_evaluated_when_the_undisturbed_one_is(iteration, tmp_path):
    with pytest.raises(Interrupted):
        train(SETTINGS | {"run_dir": str(tmp_path)}, [StopAt(iteration)])
    train({"run_dir": str(tmp_path), "resume": "last"})
    assert evaluated(tmp_path) == [1, 10, 20, 25]


def test_pieces_are_evaluated_when_the_whole_is_and_at_their_ends(tmp_path):
    train(changed(trainer={"max_epochs": 14}) | {"run_dir": str(tmp_path)})
    assert evaluated(tmp_path) == [1, 10, 14]
    train({"run_dir": str(tmp_path), "resume": "last", "trainer.max_epochs": -1})
    assert evaluated(tmp_path) == [1, 10, 14, 20, 25]


def test_a_run_goes_on_from_its_best_checkpoint(tmp_path):
    """It was written after an evaluation, which must not be made again or forgotten."""
    train(changed(total_env_steps=12 * EPOCH) | {"run_dir": str(tmp_path / "a")})
    best = tmp_path / "a" / "checkpoints" / "best.ckpt"  # of the first evaluation, since all are alike
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, of a loader that cannot resume in an epoch
        train({"run_dir": str(tmp_path / "b"), "resume": str(best)})
    assert evaluated(tmp_path / "b") == [10, 12]


def test_what_monitors_evaluations_waits_for_them_and_the_rest_does_not(tmp_path):
    stop = EarlyStopping("eval/return_mean", patience=2, mode="max")  # the first sets the mark, two bring no more
    steady = EarlyStopping("rollout/return_mean", patience=1000, mode="max")
    best = ModelCheckpoint(tmp_path / "best", "{epoch}", monitor="eval/return_mean", save_top_k=-1)
    all_of_them = ModelCheckpoint(tmp_path / "all", "{epoch}", save_top_k=-1)
    train(changed(total_env_steps=40 * EPOCH) | {"run_dir": str(tmp_path / "run")}, [stop, steady, best, all_of_them])
    assert evaluated(tmp_path / "run") == [1, 10, 20]
    names = {"best": [0, 9, 19], "all": range(20)}
    for folder, epochs in names.items():
        assert {path.name for path in (tmp_path / folder).iterdir()} == {f"epoch={epoch}.ckpt" for epoch in epochs}
    assert steady.wait_count > 10


def test_a_cadence_that_evaluations_do_not_keep_is_told(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="eval/return_mean", every_n_epochs=5)
    with pytest.warns(UserWarning, match=r"every_n_epochs=5\) saves only where .* evaluation.every_n_epochs=5"):
        train(changed(total_env_steps=EPOCH) | {"run_dir": str(tmp_path / "run")}, [best])


def test_the_pace_works_in_a_trainer_of_ones_own():
    from lightning_ppo import PPO, RolloutDataModule
    from lightning_ppo.run.evaluation_pace import EvaluationPace

    class Count(Callback):
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.epochs.append(trainer.current_epoch + 1)

    names = ("env", "rollout", "rollouts_per_epoch", "evaluation")
    data = RolloutDataModule(**{name: SETTINGS[name] for name in names}, seed=1)
    model = PPO(data.observation_space, data.action_space, update=SETTINGS["update"], policy=SETTINGS["policy"])
    off = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing"), False)
    count = Count()
    trainer = pl.Trainer(max_epochs=12, num_sanity_val_steps=1, callbacks=[count, EvaluationPace()], **off)
    trainer.fit(model, data)
    assert count.epochs == [1, 1, 10, 12]  # the first is Lightning's check before training
    assert trainer.limit_val_batches == 1.0


def test_the_summary_tells_what_evaluating_takes(tmp_path, capsys):
    summary = train(changed(evaluation={"final_episodes": 2}, total_env_steps=2 * EPOCH) | {"run_dir": str(tmp_path)})
    assert 0 < summary["evaluate_seconds"] < summary["wall_seconds"]
    rate = summary["wall_env_steps_per_second"]
    assert rate == pytest.approx(summary["env_steps"] / summary["wall_seconds"])
    assert rate < summary["env_steps_per_second"]
    assert f"{rate:,.0f} with everything counted" in capsys.readouterr().out
    again = train({"run_dir": str(tmp_path), "resume": "last", "total_env_steps": 4 * EPOCH})
    # only what this process has trained on, in its own time
    assert again["wall_env_steps_per_second"] == pytest.approx(2 * EPOCH / again["wall_seconds"])
    assert json.loads((tmp_path / "summary.json").read_text()) == again
    assert again["evaluate_seconds"] > summary["evaluate_seconds"]
