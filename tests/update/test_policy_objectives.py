"""The family of objectives: formulas against a slow float64 reference, gradients by finite differences, control."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gymnasium import spaces

from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.settings.algorithm import OBJECTIVES, UpdateConfig
from lightning_ppo.support.errors import ConfigError
from lightning_ppo.update.objectives import adapted_coefficient
from lightning_ppo.update.policy_objectives import PolicyGradient, PolicyObjective, PolicyTerms
from tests.kit.training import FIRST_ORDER, Watched, eager_and_compiled, make_pair, make_trainer

NAMES = (*FIRST_ORDER, "trpo")
COEFFICIENTS = {"clip_range": torch.tensor(0.2, dtype=torch.float64), "kl_coefficient": torch.tensor(3.0).double()}
ROWS = 40


def reference(name: str, new: float, old: float, advantage: float, kl: float) -> float:
    """The formulas of the PPO paper for one transition, with math alone."""
    ratio = math.exp(new - old)
    if name == "policy_gradient":
        return -new * advantage
    if name == "clip":
        return -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    return -ratio * advantage + (0.0 if name in ("surrogate", "trpo") else 3.0) * kl


def batch(space: spaces.Space):
    """Behaviour and current distributions of one head, with actions of the former, in float64."""
    torch.manual_seed(2)
    head = make_action_head(space)
    old = torch.randn(ROWS, head.num_parameters, dtype=torch.float64)
    new = old + 0.3 * torch.randn_like(old)
    actions = head.sample(old, head.noise((ROWS,), torch.Generator().manual_seed(1)).double())
    return head, old, new.requires_grad_(), actions, torch.randn(ROWS, dtype=torch.float64)


def terms_of(head, old, new, actions, advantages) -> PolicyTerms:
    log_probs = head.log_prob(new, actions)
    return PolicyTerms(log_probs, log_probs - head.log_prob(old, actions), advantages, head.kl(old, new))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.Box(-1, 1, (3,), np.float64)], ids=["discrete", "box"])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name, space):
    head, old, new, actions, advantages = batch(space)
    objective = OBJECTIVES.instantiate(name, UpdateConfig(kl_coefficient=3.0)).double()
    terms = terms_of(head, old, new, actions, advantages)
    losses = objective(terms, COEFFICIENTS)
    expected = [
        reference(name, *row)
        for row in zip(
            terms.log_probs.tolist(),
            head.log_prob(old, actions).tolist(),
            advantages.tolist(),
            terms.kl.tolist(),
            strict=True,
        )
    ]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)

    def total(parameters):
        return objective(terms_of(head, old, parameters, actions, advantages), COEFFICIENTS).sum()

    assert torch.autograd.gradcheck(total, (new,))


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.0149, 1.0), (0.0151, 2.0), (0.0067, 1.0), (0.0066, 0.5)], ids=["in", "above", "in ", "below"]
)
def test_the_coefficient_follows_the_papers_rule(kl, factor):
    # target .01: above .015 doubles, below .00667 halves
    assert adapted_coefficient(4.0, kl, 0.01) == 4.0 * factor


def test_the_adapted_coefficient_is_in_the_checkpoint(tmp_path):
    update = {"epochs": 2, "minibatch_size": 16, "kl_target": 1e-9}
    model, data = make_pair(model=Watched, objective="adaptive_kl", update=update, rollouts_per_epoch=3)
    trainer = make_trainer()
    trainer.fit(model, data)
    assert [m["update/kl_coefficient"] for m in model.logged] == [1.0, 2.0, 4.0]  # what each iteration used
    assert float(model.objective.coefficient) == 8.0  # three iterations far above the target
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
    assert float(loaded.objective.coefficient) == 8.0


@pytest.mark.parametrize("name", FIRST_ORDER)
@eager_and_compiled
def test_every_objective_trains_eager_and_compiled(name, compiled):
    model, data = make_pair(objective=name, update={"minibatch_size": 16}, compile=compiled)
    before = model.policy.network.actor_output.weight.detach().clone()
    trainer = make_trainer()
    trainer.fit(model, data)
    assert trainer.global_step == (4 if name == "policy_gradient" else 40)
    assert not torch.equal(model.policy.network.actor_output.weight, before)


def test_without_penalty_kl_penalty_is_the_surrogate_bit_for_bit():
    weights = []
    for name, update in (("surrogate", {}), ("kl_penalty", {"kl_coefficient": 0.0})):
        model, data = make_pair(objective=name, update={"minibatch_size": 16, **update})
        make_trainer().fit(model, data)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_with_a_wide_clip_range_clip_is_the_surrogate():
    weights = []
    for name, update in (("surrogate", {}), ("clip", {"clip_range": 0.999, "clip_range_high": 1e6})):
        model, data = make_pair(objective=name, update={"minibatch_size": 16, **update})
        make_trainer().fit(model, data)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights)


def test_equal_bounds_of_their_own_are_the_one_clip_range_bit_for_bit():
    weights = []
    for update in (
        {"clip_range": 0.1},
        {"clip_range": 0.1, "clip_range_high": 0.1},
        {"clip_range": 0.1, "clip_range_high": 0.01},
    ):
        model, data = make_pair(update={"minibatch_size": 16, **update}, optimizer={"learning_rate": 1e-2})
        make_trainer().fit(model, data)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_clipping_has_the_gradient_of_the_policy_gradient_where_the_ratio_is_1():
    torch.manual_seed(0)
    log_probs, advantages = torch.randn(ROWS), torch.randn(ROWS)
    gradients = []
    for name in ("clip", "surrogate", "policy_gradient"):
        now = log_probs.clone().requires_grad_()
        terms = PolicyTerms(now, now - log_probs, advantages, None)
        OBJECTIVES.instantiate(name, UpdateConfig())(terms, {"clip_range": torch.tensor(0.2)}).sum().backward()
        gradients.append(now.grad)
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[2])


class Derived(PolicyGradient):
    """One of a user's own."""


def test_what_is_derived_from_the_policy_gradient_has_no_ratio_either():
    model, _ = make_pair(objective="tests.update.test_policy_objectives.Derived", update={"minibatch_size": 16})
    assert model.update_settings.epochs == 1
    with pytest.raises(ConfigError, match="2 passes need a ratio"):
        make_pair(objective="tests.update.test_policy_objectives.Derived", update={"epochs": 2, "minibatch_size": 16})


def test_an_adapted_coefficient_comes_back_from_its_bounds():
    coefficient = 1.0
    for _ in range(200):
        coefficient = adapted_coefficient(coefficient, kl=0.0, target=0.01)
    assert coefficient == 1e-6 and adapted_coefficient(coefficient, kl=1.0, target=0.01) == 2e-6
    for _ in range(200):
        coefficient = adapted_coefficient(coefficient, kl=1.0, target=0.01)
    assert coefficient == 1e6 and adapted_coefficient(coefficient, kl=0.0, target=0.01) == 5e5
    # one that starts beyond them is not thrown back to them
    assert adapted_coefficient(1e-7, kl=0.0, target=0.01) == 1e-7
    with pytest.raises(ConfigError, match="kl_coefficient: adaptive_kl multiplies it, so it cannot start at 0"):
        make_pair(objective="adaptive_kl", update={"kl_coefficient": 0.0, "minibatch_size": 16})


def test_policy_gradient_refuses_more_than_one_epoch():
    with pytest.raises(ConfigError, match="need a ratio"):
        make_pair(objective="policy_gradient", update={"epochs": 2, "minibatch_size": 16})


class Halved(PolicyObjective):
    """An objective from outside."""

    def forward(self, terms, coefficients):
        return -0.5 * terms.log_ratios.exp() * terms.advantages


def test_an_objective_of_the_users_own_by_class_path():
    model, data = make_pair(objective="tests.update.test_policy_objectives.Halved")
    make_trainer().fit(model, data)
    assert type(model.objective).__name__ == "Halved"
    for name, message in (
        ("tests.update.test_policy_objectives.NAMES", "is no lightning_ppo.PolicyObjective"),
        ("no.such.thing", "cannot import"),
        ("clipp", "did you mean clip"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_pair(objective=name)


@pytest.mark.learning
@pytest.mark.parametrize("name", ["clip", "policy_gradient", "kl_penalty", "adaptive_kl", "trpo"])
def test_objectives_learn_cartpole(name):
    """From about 20 steps per episode to more than 100 within 20k steps, in seconds."""
    from lightning_ppo import PPO, RolloutDataModule

    pl.seed_everything(1, verbose=False)
    data = RolloutDataModule("CartPole-v1", num_envs=16, num_steps=32, gamma=0.99, rollouts_per_epoch=20)
    model = PPO(data.observation_space, data.action_space, objective=name, total_env_steps=20_000)
    rate = 3e-3 if name == "policy_gradient" else 1e-3
    model.learning_rate = type(model.learning_rate)(start=rate)
    make_trainer(max_epochs=-1).fit(model, data)
    assert np.mean(list(model.recent_returns)[-20:]) > 100.0
