"""Which episodes each rank plays in an evaluation."""

from types import SimpleNamespace

import pytest
import torch

from lightning_ppo import RolloutDataModule
from lightning_ppo.collection import evaluations
from lightning_ppo.rollout.shapes import Episodes


@pytest.mark.parametrize(("episodes", "shares"), [(5, [2, 2, 1]), (3, [1, 1, 1]), (2, [1, 1, 0])])
def test_ranks_play_all_episodes_and_none_twice(episodes, shares, monkeypatch):
    played, seeds = [], []

    def play(policy, env, share, **settings):
        played.append(share)
        seeds.extend(settings["seeds"][:share])
        return Episodes(torch.zeros(share), torch.zeros(share))

    monkeypatch.setattr(evaluations, "play", play)
    monkeypatch.setattr(evaluations, "world_size", lambda: 3)
    module = SimpleNamespace(policy=None, device=torch.device("cpu"))
    data = RolloutDataModule("CartPole-v1", evaluation={"num_envs": 2}, seed=3)
    data.trainer = SimpleNamespace(sanity_checking=False, lightning_module=module)
    for rank in range(3):
        monkeypatch.setattr(evaluations, "rank", lambda rank=rank: rank)
        data.evaluate(episodes)
    data.teardown("fit")
    assert played == [share for share in shares if share]
    assert len(set(seeds)) == len(seeds) == episodes
