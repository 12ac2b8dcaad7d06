"""Truncations of simulators that give one kind of episode end, under whatever name they go."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo.collection.collector import Collector
from lightning_ppo.envs.simulators import TRUNCATIONS, TensorVectorEnv
from lightning_ppo.policy.actor_critic import ActorCritic
from lightning_ppo.support.errors import EnvironmentFault

BOX = spaces.Box(-1.0, 100.0, (1,), np.float32)


class Simulator:
    """Copy 0 ends by itself after 2 steps, copy 1 is cut off after 3; brax gives both as float32."""

    num_envs = 2

    def __init__(self, key: str | None, shape: tuple[int, ...] = (2,)) -> None:
        self.key, self.shape = key, shape

    def reset(self):
        self.t = torch.zeros(2)
        return self.t[:, None].clone()

    def step(self, actions):
        self.t = self.t + 1.0
        dones = self.t >= torch.tensor([2.0, 3.0])
        infos = {"steps": self.t}
        if self.key is not None:
            infos[self.key] = (dones & torch.tensor([False, True])).float().reshape(self.shape)
        self.t = torch.where(dones, 0.0, self.t)
        return self.t[:, None].clone(), torch.ones(2), dones.float(), infos


def ends(env):
    policy = ActorCritic(env.single_observation_space, env.single_action_space)
    rollout = Collector(env, policy, 6, torch.Generator().manual_seed(0), [0]).collect()
    return rollout.terminations.sum(0).tolist(), rollout.truncations.sum(0).tolist()


@pytest.mark.parametrize("key", TRUNCATIONS)
def test_truncations_are_found_by_every_known_name(key, caplog):
    assert ends(TensorVectorEnv(Simulator(key), BOX, BOX)) == ([3, 0], [0, 2])
    assert "names no truncations" not in caplog.text


class Twice(Simulator):
    """As brax's inverted pendulum: says of falls that they are time-outs, and of those that they are truncations."""

    def step(self, actions):
        observations, rewards, dones, infos = super().step(actions)
        return observations, rewards, dones, {"time_out": dones - infos["truncation"], **infos}


def test_of_two_names_that_of_truncations_is_taken_and_a_line_says_so_once(caplog):
    env = TensorVectorEnv(Twice("truncation"), BOX, BOX)
    assert ends(env) == ([3, 0], [0, 2]) and ends(env) == ([3, 0], [0, 2])
    assert caplog.text.count("Twice has truncation and time_out in its infos: truncation is taken") == 1
    assert ends(TensorVectorEnv(Twice("truncation"), BOX, BOX, truncation_key="time_out")) == ([0, 2], [3, 0])


def test_any_other_name_can_be_given():
    assert ends(TensorVectorEnv(Simulator("cut"), BOX, BOX, truncation_key="cut")) == ([3, 0], [0, 2])
    with pytest.raises(EnvironmentFault, match="truncation_key='cut' is not in the infos of Simulator, which are "):
        ends(TensorVectorEnv(Simulator("time_outs"), BOX, BOX, truncation_key="cut"))


def test_where_none_are_named_a_line_says_so_once(caplog):
    env = TensorVectorEnv(Simulator(None), BOX, BOX)
    assert ends(env) == ([3, 2], [0, 0]) and ends(env) == ([3, 2], [0, 0])
    assert caplog.text.count("Simulator names no truncations in its infos (steps): every end of an episode counts") == 1


def test_truncations_of_another_shape_are_one_line():
    with pytest.raises(EnvironmentFault, match=r"returned infos\['time_outs'\] of shape \(2, 1\), expected \(2,\)"):
        ends(TensorVectorEnv(Simulator("time_outs", (2, 1)), BOX, BOX))
