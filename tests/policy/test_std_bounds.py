"""Bounds of the standard deviation of Gaussian actions."""

import logging
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.policy.distributions import GaussianHead, make_action_head
from lightning_ppo.settings.networks import PolicyConfig
from lightning_ppo.support.errors import ConfigError
from tests.kit.training import make_trainer

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
BOUNDS = [-1.0, -0.4]


@pytest.mark.parametrize("distribution", ["gaussian", "tanh_gaussian"])
def test_a_deviation_beyond_a_bound_is_used_as_the_bound_and_comes_back(distribution):
    head = make_action_head(BOX, distribution, -0.5, log_std_bounds=BOUNDS)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([-3.0, 2.0]))
    log_std = head.parameters_of(torch.zeros(1, 2))[0, 2:]
    assert log_std.tolist() == pytest.approx(BOUNDS)
    head.shrink(0.0)
    assert head.log_std.tolist() == pytest.approx(BOUNDS)
    # at a bound there is a gradient again, in both directions
    head.parameters_of(torch.zeros(1, 2))[0, 2:].sum().backward()
    assert head.log_std.grad.tolist() == [1.0, 1.0]


def test_the_deviation_of_a_network_stays_within_the_bounds():
    head = make_action_head(BOX, "state_gaussian", -0.5, log_std_bounds=BOUNDS)
    outputs = torch.tensor([[0.0, 0.0, 9.0, -9.0], [0.0, 0.0, 0.0, 0.0]])
    assert head.parameters_of(outputs)[:, 2:].flatten().tolist() == pytest.approx([-0.4, -1.0, -0.5, -0.5])
    head.shrink(0.2)  # what outputs are relative to may move on
    assert head.parameters_of(outputs)[1, 2:].tolist() == pytest.approx([-0.7, -0.7])


@pytest.mark.parametrize("distribution", ["gaussian", "state_gaussian"])
def test_rollouts_are_scored_by_the_policy_that_collected_them(distribution):
    # a rate that drives deviations out of the bounds within an iteration; the first ratio of the next is 1 all the same
    policy = {"distribution": distribution, "log_std_bounds": [-0.51, -0.49]}
    data = RolloutDataModule("Pendulum-v1", num_envs=2, num_steps=16, rollouts_per_epoch=3)
    ratios = []

    class Watched(PPO):
        def policy_loss(self, terms):
            ratios.append(terms.log_ratios.detach().abs().max())
            return super().policy_loss(terms)

    update = {"epochs": 3, "minibatch_size": 32, "entropy_coefficient": 1.0}
    rate = {"learning_rate": 0.05}
    model = Watched(data.observation_space, data.action_space, policy=policy, update=update, optimizer=rate)
    make_trainer().fit(model, data)
    assert len(ratios) == 9 and all(ratio < 1e-5 for ratio in ratios[::3]) and max(ratios) > 1e-2
    deviation = model.policy.head.parameters_of(torch.zeros(1, model.policy.head.num_outputs))[0, -1].detach()
    assert -0.51 - 1e-6 <= float(deviation) <= -0.49 + 1e-6


@pytest.mark.parametrize("bounds", [[-1.0], [-3.0, -2.0], [0.0, -1.0], [math.nan, 0.0]])
def test_bounds_that_make_no_sense_are_refused(bounds):
    with pytest.raises(ConfigError, match=r"^policy\.log_std_bounds: expected two numbers with policy\.log_std_init="):
        PolicyConfig(log_std_bounds=bounds)


class Own(GaussianHead):
    """Has a constructor from before there were bounds."""

    def __init__(self, space, log_std_init=0.0):
        super().__init__(space, log_std_init)


def test_a_head_that_takes_no_bounds_says_so(caplog):
    with pytest.raises(ConfigError, match=r"policy\.log_std_bounds: the constructor of .*Own takes none"):
        make_action_head(BOX, f"{__name__}.Own", 0.0, log_std_bounds=BOUNDS)
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=8)
    settings = {"policy": {"log_std_bounds": BOUNDS}, "update": {"minibatch_size": 16}}
    model = PPO(data.observation_space, data.action_space, **settings)
    with caplog.at_level(logging.WARNING, "lightning_ppo"):
        make_trainer(max_steps=1).fit(model, data)
    assert "policy.log_std_bounds=[-1.0, -0.4] has no effect: it needs Box actions of a Gaussian" in caplog.text
