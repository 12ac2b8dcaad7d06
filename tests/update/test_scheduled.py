"""Coefficients that follow schedules besides those of the loss: discounting, clipping, passes, bounds on KL."""

import pytest
import pytorch_lightning as pl

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.settings.algorithm import RolloutConfig, TrustRegionConfig, UpdateConfig
from lightning_ppo.support.errors import ConfigError
from tests.kit.resuming import assert_same_agent
from tests.kit.training import make_trainer

HALVES = [0.0, 0.25, 0.5, 0.75]
"""Shares of the budget at which the four rollouts are collected."""


def falling(start: float, end: float) -> dict[str, float | str]:
    return {"kind": "linear", "start": start, "end": end}


class Seen(pl.Callback):
    """Keeps what each iteration was made with."""

    def __init__(self) -> None:
        self.discounts: list[tuple[float, float]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.discounts.append((batch.gamma, batch.gae_lambda))
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def make(update=None, **settings):
    pl.seed_everything(1, verbose=False)
    rollout = {"gamma": falling(0.9, 0.5), "gae_lambda": falling(1.0, 0.0)}
    data = RolloutDataModule("Pendulum-v1", num_envs=2, num_steps=8, rollouts_per_epoch=1, rollout=rollout)
    update = {"minibatch_size": 8, "epochs": falling(4, 1)} | (update or {})
    model = PPO(data.observation_space, data.action_space, total_env_steps=64, update=update, compile=False, **settings)
    return model, data


def test_discounting_and_passes_follow_the_budget_and_are_logged():
    model, data = make({"max_grad_norm": falling(1e-3, 5e-4)})
    seen = Seen()
    make_trainer(max_epochs=9, callbacks=[seen]).fit(model, data)
    assert seen.discounts == [pytest.approx((0.9 - 0.4 * p, 1.0 - p)) for p in HALVES]
    assert [row["update/epochs"] for row in seen.logged] == [4, 3, 2, 2]  # 2.5 and 1.75 are rounded
    for name, values in {"gamma": [0.9, 0.8, 0.7, 0.6], "max_grad_norm": [1e-3, 8.75e-4, 7.5e-4, 6.25e-4]}.items():
        assert [row[f"update/{name}"] for row in seen.logged] == pytest.approx(values)


def test_each_minibatch_is_clipped_to_the_bound_of_its_iteration():
    bounds = []

    class Clipping(PPO):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            bounds.append(float(sum(p.grad.square().sum() for p in self.parameters()) ** 0.5))

    _, data = make()
    update = {"minibatch_size": 16, "epochs": 1, "max_grad_norm": falling(1e-3, 0.0 + 1e-4)}
    model = Clipping(data.observation_space, data.action_space, total_env_steps=64, update=update)
    make_trainer(max_epochs=9).fit(model, data)
    assert bounds == pytest.approx([1e-3 - 9e-4 * p for p in HALVES], rel=1e-3)


def test_a_bound_on_kl_that_falls_ends_later_iterations_sooner():
    model, data = make({"epochs": 3, "target_kl": {"kind": "piecewise", "points": [[0, 9.0], [0.4, 9.0], [0.5, 1e-9]]}})
    seen = Seen()
    make_trainer(max_epochs=9, callbacks=[seen]).fit(model, data)
    assert [row["update/epochs"] for row in seen.logged] == [3, 3, 1, 1]


def test_the_target_of_the_adaptive_penalty_moves():
    model, data = make({"kl_target": {"kind": "piecewise", "points": [[0, 1e-9], [0.5, 1e9]]}}, objective="adaptive_kl")
    seen = Seen()
    make_trainer(max_epochs=9, callbacks=[seen]).fit(model, data)
    # far above the target the coefficient is doubled, far below it is halved
    assert [row["update/kl_coefficient"] for row in seen.logged] == [1.0, 2.0, 1.0, 0.5]


def test_the_size_of_the_trust_region_follows_the_budget():
    region = {"max_kl": falling(1e-2, 1e-6), "damping": falling(0.2, 0.1)}
    model, data = make({"epochs": 1, "trust_region": region}, objective="trpo")
    seen = Seen()
    make_trainer(max_epochs=9, callbacks=[seen]).fit(model, data)
    assert [row["update/max_kl"] for row in seen.logged] == pytest.approx([1e-2 - 9.999e-3 * p for p in HALVES])
    assert all(row["update/kl"] <= 1.01 * row["update/max_kl"] for row in seen.logged)
    assert model.trust_region.damping == pytest.approx(0.125)


def test_training_that_goes_on_has_the_values_it_had(tmp_path):
    whole, data = make()
    whole_trainer = make_trainer(max_epochs=9)
    whole_trainer.fit(whole, data)
    model, data = make()
    first = make_trainer(max_epochs=2)
    first.fit(model, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    model, data = make()
    trainer = make_trainer(max_epochs=9)
    trainer.fit(model, data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_same_agent(whole, whole_trainer, model, trainer)


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        (RolloutConfig, {"gamma": falling(0.9, 1.1)}, "rollout.gamma: must be at most 1, got {"),
        (RolloutConfig, {"gae_lambda": -0.1}, "rollout.gae_lambda: values must be finite and not negative, got -0.1"),
        (UpdateConfig, {"epochs": falling(4, 0)}, "update.epochs: must be at least 1, got {"),
        (UpdateConfig, {"epochs": 2.5}, "update.epochs: expected an integer, a schedule or null, got 2.5"),
        (UpdateConfig, {"max_grad_norm": 0.0}, "update.max_grad_norm: must be positive, got 0.0"),
        (
            UpdateConfig,
            {"target_kl": "small"},
            "update.target_kl: expected a number or a schedule mapping, got",
        ),
        (TrustRegionConfig, {"max_kl": falling(0.1, 0)}, "update.trust_region.max_kl: must be positive, got {"),
    ],
)
def test_values_out_of_range_are_refused_by_name(section, settings, said):
    with pytest.raises(ConfigError) as error:
        section(**settings)
    assert str(error.value).startswith(said)
