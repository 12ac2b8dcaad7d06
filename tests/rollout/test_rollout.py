"""Rollouts and minibatches: alignment, coverage, dtypes, and rows that must not count."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_ppo.rollout.shapes import Episodes, Rollout, select, shuffled_indices
from lightning_ppo.support.tree import tree_map
from lightning_ppo.update.objectives import clipped_surrogate_loss, kl_k3, masked_log_ratios, value_loss, weighted_sum

STEPS, ENVS = 8, 6
SIZE = STEPS * ENVS


def identifiable_rollout(**changes: Any) -> Rollout:
    """A rollout of 8 steps x 6 environments in which every field tells which transition it belongs to."""
    ids = torch.arange(SIZE).view(STEPS, ENVS)
    numbers = ids.float()
    rollout = Rollout(
        observations=torch.stack((numbers, numbers + 0.5, -numbers), -1),
        actions=ids.clone(),
        distribution=torch.stack((numbers, 2 * numbers), -1),
        log_probs=-numbers,
        values=10 * numbers,
        next_values=20 * numbers,
        boundary_observations=torch.zeros(ENVS, 3),
        boundary_rows=torch.arange(SIZE - ENVS, SIZE),
        rewards=30 * numbers,
        terminations=torch.zeros(STEPS, ENVS, dtype=torch.bool),
        truncations=torch.zeros(STEPS, ENVS, dtype=torch.bool),
        valid=torch.ones(STEPS, ENVS, dtype=torch.bool),
        episodes=Episodes(torch.tensor([3.0], dtype=torch.float64), torch.tensor([4])),
        policy_version=7,
        collect_seconds=0.5,
        scaled_rewards=3 * numbers,
        advantages=100 + numbers,
        returns=1000 + numbers,
    )
    return replace(rollout, **changes)


def tree_leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tensor or a nested dict."""
    leaves: list[Tensor] = []
    tree_map(leaves.append, tree)
    return leaves


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- shuffling


def test_each_transition_is_used_once_per_epoch_with_its_own_fields() -> None:
    batch = identifiable_rollout().flatten()
    minibatches = [select(batch, rows) for rows in shuffled_indices(SIZE, SIZE // 4, generator())]
    assert len(minibatches) == 4
    assert sorted(torch.cat([m.actions for m in minibatches]).tolist()) == list(range(SIZE))
    for minibatch in minibatches:
        ids = minibatch.actions.float()
        assert torch.equal(minibatch.observations, torch.stack((ids, ids + 0.5, -ids), -1))
        assert torch.equal(minibatch.distribution, torch.stack((ids, 2 * ids), -1))
        assert torch.equal(minibatch.log_probs, -ids)
        assert torch.equal(minibatch.values, 10 * ids)
        assert torch.equal(minibatch.advantages, 100 + ids)
        assert torch.equal(minibatch.returns, 1000 + ids)
        assert torch.equal(minibatch.weights, torch.ones(SIZE // 4))


def test_each_epoch_has_another_permutation() -> None:
    source = generator()
    epochs = [shuffled_indices(SIZE, 12, source) for _ in range(3)]
    orders = {tuple(epoch.flatten().tolist()) for epoch in epochs}
    assert len(orders) == 3 and tuple(range(SIZE)) not in orders
    assert all(sorted(order) == list(range(SIZE)) for order in orders)
    # the sets of a minibatch differ too, not only the order within it
    assert len({frozenset(epoch[0].tolist()) for epoch in epochs}) == 3


def test_the_permutation_depends_on_the_generator_alone() -> None:
    first = shuffled_indices(SIZE, 12, generator(1))
    torch.manual_seed(5)
    assert torch.equal(first, shuffled_indices(SIZE, 12, generator(1)))
    assert not torch.equal(first, shuffled_indices(SIZE, 12, generator(2)))


@pytest.mark.parametrize(("minibatch_size", "count"), [(1, 48), (16, 3), (48, 1)])
def test_number_of_minibatches(minibatch_size: int, count: int) -> None:
    assert shuffled_indices(SIZE, minibatch_size, generator()).shape == (count, minibatch_size)


@pytest.mark.parametrize("minibatch_size", [5, 47, 49, 96])
def test_a_minibatch_size_that_does_not_divide_raises(minibatch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"{minibatch_size} does not divide 48"):
        shuffled_indices(SIZE, minibatch_size, generator())


# ---------------------------------------------------------------- observations


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float16, torch.float32])
def test_observations_keep_their_dtype_and_shape(dtype: torch.dtype) -> None:
    images = (torch.arange(SIZE * 4).view(STEPS, ENVS, 1, 2, 2) % 251).to(dtype)
    minibatch = select(identifiable_rollout(observations=images).flatten(), torch.tensor([47, 0, 13]))
    # 47 = step 7 of env 5; 13 = step 2 of env 1
    assert minibatch.observations.dtype == dtype
    assert torch.equal(minibatch.observations, torch.stack((images[7, 5], images[0, 0], images[2, 1])))


def test_dict_observations_stay_aligned() -> None:
    ids = torch.arange(SIZE).view(STEPS, ENVS)
    observations = {
        "image": ids.to(torch.uint8)[..., None, None].expand(STEPS, ENVS, 2, 2),
        "state": {"position": ids[..., None] + torch.tensor([0.0, 0.25]), "contact": ids % 2 == 0},
    }
    batch = identifiable_rollout(observations=observations).flatten()
    for rows in shuffled_indices(SIZE, 12, generator()):
        minibatch = select(batch, rows)
        image, state = minibatch.observations["image"], minibatch.observations["state"]
        assert image.dtype == torch.uint8 and image.shape == (12, 2, 2)
        assert torch.equal(image, minibatch.actions.to(torch.uint8)[:, None, None].expand(12, 2, 2))
        assert torch.equal(state["position"], minibatch.actions[:, None] + torch.tensor([0.0, 0.25]))
        assert torch.equal(state["contact"], minibatch.actions % 2 == 0)


def test_vector_actions_keep_their_shape() -> None:
    actions = torch.arange(SIZE * 2, dtype=torch.float32).view(STEPS, ENVS, 2)
    minibatch = select(identifiable_rollout(actions=actions).flatten(), torch.tensor([7]))
    # row 7 = step 1 of env 1
    assert torch.equal(minibatch.actions, actions[1, 1].unsqueeze(0))


# ---------------------------------------------------------------- rows that are no transitions

FILLER = torch.zeros(STEPS, ENVS, dtype=torch.bool)
FILLER[3, 0] = FILLER[4, 2] = FILLER[7, 5] = True


def losses(rollout: Rollout, new_log_probs: Tensor, new_values: Tensor, clip_range: float | None = None) -> Tensor:
    """The losses of an update over the whole rollout, reduced under the weights of its rows."""
    batch = rollout.flatten()
    log_ratios = masked_log_ratios(new_log_probs, batch.log_probs, batch.weights)
    return torch.stack(
        (
            weighted_mean(clipped_surrogate_loss(log_ratios, batch.advantages, 0.2), batch.weights),
            weighted_mean(value_loss(new_values, batch.returns, batch.values, clip_range), batch.weights),
            weighted_mean(kl_k3(log_ratios), batch.weights),
        )
    )


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    return weighted_sum(x, weights) / weights.sum()


def near_behavior(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values of a slightly changed policy, as leaves."""
    log_probs = (rollout.log_probs.flatten() + 0.1 * torch.randn(SIZE)).requires_grad_()
    return log_probs, torch.randn(SIZE, requires_grad=True)


def transitions(value: Any, keep: Tensor) -> Any:
    """The kept transitions of a (T, N, ...) tensor as (K, 1, ...); anything else as it is."""
    return value.flatten(0, 1)[keep].unsqueeze(1) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("clip_range", [None, 0.2], ids=["plain", "value clipping"])
@pytest.mark.parametrize("names", [("advantages",), ("returns",), ("values",), ("log_probs",), None], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_filler_rows_reach_neither_loss_nor_gradient(
    bad: float, names: tuple[str, ...] | None, clip_range: float | None
) -> None:
    clean = identifiable_rollout(valid=~FILLER)
    new_log_probs, new_values = near_behavior(clean)
    # what the valid rows alone give
    keep = ~FILLER.flatten()
    rows = [f.name for f in fields(clean) if not f.name.startswith("boundary")]
    alone = identifiable_rollout(**{name: transitions(getattr(clean, name), keep) for name in rows})
    expected = losses(alone, new_log_probs[keep], new_values[keep], clip_range)

    names = names or ("advantages", "returns", "values", "log_probs")
    spoilt = replace(clean, **{name: getattr(clean, name).masked_fill(FILLER, bad) for name in names})
    actual = losses(spoilt, new_log_probs, new_values, clip_range)
    torch.testing.assert_close(actual, expected)

    gradients = torch.autograd.grad(actual.sum(), (new_log_probs, new_values))
    for gradient in gradients:
        assert torch.equal(gradient[~keep], torch.zeros(3)) and torch.isfinite(gradient).all()
        assert gradient[keep].abs().sum() > 0
    # flattening masks a copy
    assert all(torch.equal(getattr(spoilt, name)[FILLER].isnan(), torch.full((3,), math.isnan(bad))) for name in names)


def test_a_filler_row_under_a_sharply_peaked_policy_reaches_no_loss() -> None:
    # densities are unbounded: with standard deviation .005 the log-density at the mean of 25 dimensions is
    # 25 x (5.30 - .92) = 109, and e^89 overflows float32; all rows have it, so that every valid ratio is 1
    log_probs = torch.full((STEPS, ENVS), 109.0)
    rollout = identifiable_rollout(valid=~FILLER, log_probs=log_probs)
    new_log_probs = log_probs.flatten().requires_grad_()
    loss = losses(rollout, new_log_probs, torch.zeros(SIZE))
    (gradient,) = torch.autograd.grad(loss.sum(), new_log_probs)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert torch.equal(gradient[FILLER.flatten()], torch.zeros(3))


def test_weights_mark_the_valid_rows() -> None:
    batch = identifiable_rollout(valid=~FILLER).flatten()
    assert torch.equal(batch.weights, (~FILLER).flatten().float())


def test_without_filler_rows_the_reduction_is_the_plain_mean() -> None:
    rollout = identifiable_rollout()
    new_log_probs, new_values = near_behavior(rollout)
    log_ratios = new_log_probs - rollout.log_probs.flatten()
    expected = (
        clipped_surrogate_loss(log_ratios, rollout.advantages.flatten(), 0.2).mean(),
        value_loss(new_values, rollout.returns.flatten()).mean(),
        kl_k3(log_ratios).mean(),
    )
    torch.testing.assert_close(losses(rollout, new_log_probs, new_values), torch.stack(expected))


@pytest.mark.parametrize("name", ["advantages", "returns"])
def test_flatten_needs_the_advantages(name: str) -> None:
    with pytest.raises(ValueError, match="no advantages"):
        identifiable_rollout(**{name: None}).flatten()


# ---------------------------------------------------------------- moving


@pytest.mark.parametrize("nested", [False, True], ids=["tensor", "dict"])
def test_to_moves_every_tensor_but_the_episode_statistics(nested: bool) -> None:
    observations = torch.zeros(STEPS, ENVS, 2)
    rollout = identifiable_rollout(observations={"a": {"b": observations}} if nested else observations, returns=None)
    moved = rollout.to(torch.device("meta"))
    for field in fields(rollout):
        before, after = getattr(rollout, field.name), getattr(moved, field.name)
        if isinstance(before, Episodes | int | float | None):
            assert after is before
        else:
            assert all(leaf.is_meta for leaf in tree_leaves(after)), field.name
            assert not any(leaf.is_meta for leaf in tree_leaves(before)), field.name
    assert (moved.num_steps, moved.num_envs) == (STEPS, ENVS)


def test_tree_map_keeps_the_structure() -> None:
    tree = {"b": torch.tensor(1), "a": {"c": torch.tensor(2)}}
    assert tree_map(lambda x: x.item() * 10, tree) == {"b": 10, "a": {"c": 20}}
    assert [leaf.item() for leaf in tree_leaves(tree)] == [1, 2]
