"""Which environments and which noise each process of each rank has, and how what they collect is put together."""

import torch

from lightning_ppo.collection.groups import side_by_side
from lightning_ppo.collection.processes import shares_of
from lightning_ppo.rollout.shapes import Episodes, Rollout


def test_environments_have_the_seeds_of_their_number_among_those_of_all_ranks():
    (alone,) = shares_of(10, 1, seed=3, rank=0)
    assert len(set(alone.seeds)) == 10
    ranks = [shares_of(5, 2, seed=3, rank=rank) for rank in (0, 1)]
    assert [[share.num_envs for share in shares] for shares in ranks] == [[3, 2], [3, 2]]
    assert [seed for shares in ranks for share in shares for seed in share.seeds] == alone.seeds


def test_no_two_processes_of_any_rank_have_the_same_noise():
    shares = [share for rank in range(3) for share in shares_of(6, 3, seed=3, rank=rank)]
    assert len({share.noise_seed for share in shares}) == 9
    assert shares_of(6, 3, seed=3, rank=1) == shares[3:6]


def rollout_of(num_envs: int, first: float, rows: list[int]) -> Rollout:
    """Return 3 steps whose value in environment n at step t is first + n + 10 t; those of the boundary are 100 more."""
    values = first + torch.arange(num_envs) + 10.0 * torch.arange(3.0).unsqueeze(1)
    none = torch.zeros(3, num_envs, dtype=torch.bool)
    found = torch.tensor([first, first + 1], dtype=torch.float64)
    return Rollout(
        observations={"x": values},
        actions=values,
        distribution=values.unsqueeze(-1),
        log_probs=values,
        values=values,
        next_values=values,
        boundary_observations={"x": values.flatten()[rows] + 100.0},
        boundary_rows=torch.tensor(rows),
        rewards=values,
        terminations=none,
        truncations=none,
        valid=~none,
        episodes=Episodes(found, found.long()),
    )


def test_what_follows_a_row_follows_it_in_the_whole_rollout():
    # the rows after the last step, and one in the middle
    parts = [rollout_of(2, 0.0, [4, 5, 1]), rollout_of(3, 2.0, [6, 7, 8, 3])]
    whole = side_by_side(parts)
    expected = torch.arange(5) + 10.0 * torch.arange(3.0).unsqueeze(1)
    for found in (whole.observations["x"], whole.actions, whole.distribution.squeeze(-1), whole.rewards):
        assert torch.equal(found, expected)
    assert whole.boundary_rows.tolist() == [10, 11, 1, 12, 13, 14, 7]
    assert torch.equal(whole.boundary_observations["x"], expected.flatten()[whole.boundary_rows] + 100.0)
    assert whole.episodes.returns.tolist() == [0.0, 1.0, 2.0, 3.0] and whole.valid.shape == (3, 5)
