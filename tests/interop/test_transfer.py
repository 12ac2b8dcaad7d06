"""Weights of Stable-Baselines3 in networks of ours, worked out by hand."""

import numpy as np
import torch
from gymnasium import spaces

from lightning_ppo.interop.sb3 import Sb3Agent, transfer
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.settings.algorithm import NormalizeConfig
from lightning_ppo.settings.networks import PolicyConfig


def test_actions_are_those_of_a_range_that_is_not_centred_at_zero():
    shapes = {"mlp_extractor.policy_net.0": (3, 2), "mlp_extractor.value_net.0": (3, 2)}
    shapes |= {"action_net": (2, 3), "value_net": (1, 3)}
    weights = {f"{name}.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    biases = {f"{name}.bias": 0.1 * torch.randn(shape[0]) for name, shape in shapes.items()}
    biases["action_net.bias"] = torch.tensor([2.5, -6.0])
    agent = Sb3Agent(weights | biases | {"log_std": torch.zeros(2)}, {})
    seen, does = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Box(np.float32([0.0, -9.0]), np.float32([4.0, -3.0]))
    policy = ActorCritic(seen, does, PolicyConfig(hidden_sizes=[3]), NormalizeConfig(False, False))
    transfer(agent, policy)
    x = torch.randn(5, 2)
    hidden = torch.tanh(x @ weights["mlp_extractor.policy_net.0.weight"].T + biases["mlp_extractor.policy_net.0.bias"])
    expected = hidden @ weights["action_net.weight"].T + biases["action_net.bias"]
    assert ((expected > torch.from_numpy(does.low)) & (expected < torch.from_numpy(does.high))).all()
    torch.testing.assert_close(policy.predict(x)[0], expected)
