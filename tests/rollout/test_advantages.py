"""Advantages against hand-worked cases and a slow reference loop."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_ppo.rollout.advantages import (
    discounted_sums,
    generalized_advantages,
    normalize_advantages,
    recursive_advantages,
    recursive_sums,
)
from lightning_ppo.speed import scan


@pytest.fixture(params=["recursion", "scan"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute everything in both forms, whatever the length."""
    monkeypatch.setattr(scan, "pays", lambda steps: request.param == "scan")


NAMES = ("rewards", "values", "next_values", "terminations", "truncations")


def column(*numbers: float) -> Tensor:
    """A (T, 1) float64 tensor."""
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def flags(length: int, *steps: int) -> Tensor:
    """A (T, 1) bool tensor, True at the given steps."""
    result = torch.zeros(length, 1, dtype=torch.bool)
    result[list(steps)] = True
    return result


def random_data(steps: int, envs: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random trajectories in which about a tenth of the steps terminate, a tenth are truncated, and a few are both."""
    generator = torch.Generator().manual_seed(steps * 100 + envs)
    numbers = torch.randn(3, steps, envs, generator=generator, dtype=torch.float64).to(dtype)
    ends = torch.rand(2, steps, envs, generator=generator) < 0.1
    return dict(zip(NAMES, (*numbers, *ends), strict=True))


def reference(data: dict[str, Tensor], gamma: float, gae_lambda: float) -> tuple[np.ndarray, np.ndarray]:
    """GAE as a float64 loop over environments and time."""
    r, v, v_next, term, trunc = (data[name].double().numpy() for name in NAMES)
    advantages = np.zeros_like(r)
    for n in range(r.shape[1]):
        for t in reversed(range(r.shape[0])):
            delta = r[t, n] - v[t, n] + (0.0 if term[t, n] else gamma * v_next[t, n])
            goes_on = t + 1 < r.shape[0] and not term[t, n] and not trunc[t, n]
            advantages[t, n] = delta + (gamma * gae_lambda * advantages[t + 1, n] if goes_on else 0.0)
    return advantages, advantages + v


def on_ranks(*tasks: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> list[Tensor]:
    """Run one task per emulated rank, each in a thread, with a `reduce` that sums over them."""
    barrier, slots = threading.Barrier(len(tasks), timeout=20), [torch.empty(0)] * len(tasks)

    def reduce_of(rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(x: Tensor) -> Tensor:
            slots[rank] = x.clone()
            barrier.wait()
            total = torch.stack(slots).sum(0)
            barrier.wait()
            return total

        return reduce

    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task, reduce_of(rank)) for rank, task in enumerate(tasks)]
        return [future.result() for future in futures]


def test_hand_worked_example() -> None:
    advantages, returns = generalized_advantages(
        column(1, 2, 3), column(0.5, 1, 1.5), column(1, 1.5, 2), flags(3), flags(3), gamma=0.99, gae_lambda=0.95
    )
    # A_2 = 3 + .99 x 2 - 1.5 = 3.48
    # A_1 = 2 + .99 x 1.5 - 1 + .9405 x 3.48 = 2.485 + 3.27294 = 5.75794
    # A_0 = 1 + .99 x 1 - .5 + .9405 x 5.75794 = 1.49 + 5.415343 = 6.905343
    torch.testing.assert_close(advantages, column(6.905343, 5.757940, 3.48), rtol=0, atol=1e-6)
    torch.testing.assert_close(returns, column(7.405343, 6.757940, 4.98), rtol=0, atol=1e-6)


def test_termination_cuts_bootstrap_and_recursion() -> None:
    advantages, returns = generalized_advantages(
        column(1, 2), column(0.5, 1), column(1, 3), flags(2, 0), flags(2), gamma=0.99, gae_lambda=0.95
    )
    # R_0 = 1 (nothing follows); R_1 = 2 + .99 x 3 = 4.97
    torch.testing.assert_close(returns, column(1.0, 4.97))
    torch.testing.assert_close(advantages, column(0.5, 3.97))


def test_truncation_cuts_the_recursion_but_not_the_bootstrap() -> None:
    _, returns = generalized_advantages(
        column(1, 2), column(0.5, 1), column(10, 3), flags(2), flags(2, 0), gamma=0.99, gae_lambda=0.95
    )
    # R_0 = 1 + .99 x 10 = 10.9, from the true next value and without A_1
    torch.testing.assert_close(returns, column(10.9, 4.97))


def test_monte_carlo_limit() -> None:
    zeros = torch.zeros(8, 1, dtype=torch.float64)
    advantages, returns = generalized_advantages(
        column(*range(8)), zeros, zeros, flags(8, 0, 3, 7), flags(8, 5), gamma=0.1, gae_lambda=1.0
    )
    # episodes 0 | 1 2 3 | 4 5 | 6 7, e.g. 1 + .1 x 2 + .01 x 3 = 1.23
    torch.testing.assert_close(returns, column(0, 1.23, 2.3, 3, 4.5, 5, 6.7, 7))
    torch.testing.assert_close(advantages, returns)


@pytest.mark.parametrize(("end", "at_end"), [("truncations", 0.0), ("terminations", -49.0)])
def test_right_critic_of_an_endless_task_has_no_advantage_unless_the_timeout_counts_as_terminal(
    end: str, at_end: float
) -> None:
    # reward 1 forever with gamma .98 is worth V = 1 / .02 = 50: delta = 1 + .98 x 50 - 50 = 0; terminal: 1 - 50 = -49
    data = {"terminations": flags(16), "truncations": flags(16)}
    data[end] = flags(16, 7, 15)
    value = torch.full((16, 1), 50.0, dtype=torch.float64)
    advantages, _ = generalized_advantages(torch.ones_like(value), value, value, **data, gamma=0.98, gae_lambda=0.95)
    # the step k before the end sees (gamma lambda)^k of it: .931^k
    expected = at_end * torch.tensor([0.931**k for k in range(7, -1, -1)], dtype=torch.float64).repeat(2)
    torch.testing.assert_close(advantages[:, 0], expected, rtol=1e-10, atol=1e-10)


def test_lambda_zero_is_the_td_error() -> None:
    data = random_data(50, 3)
    advantages, returns = generalized_advantages(**data, gamma=0.9, gae_lambda=0.0)
    targets = data["rewards"] + 0.9 * data["next_values"].masked_fill(data["terminations"], 0.0)
    torch.testing.assert_close(returns, targets)
    torch.testing.assert_close(advantages, targets - data["values"])


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("gae_lambda", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (3, 1), (5, 3), (200, 1), (200, 3)])
def test_equals_a_sequential_loop(
    steps: int, envs: int, gamma: float, gae_lambda: float, dtype: torch.dtype, rtol: float
) -> None:
    data = random_data(steps, envs, dtype)
    expected = reference(data, gamma, gae_lambda)
    for actual, wanted in zip(
        generalized_advantages(**data, gamma=gamma, gae_lambda=gae_lambda), expected, strict=True
    ):
        torch.testing.assert_close(actual, torch.from_numpy(wanted).to(dtype), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("end", ["terminations", "truncations"])
@pytest.mark.parametrize("steps", [3, 5, 200])
def test_no_leak_between_successive_trajectories(steps: int, end: str) -> None:
    settings = {"gamma": 0.99, "gae_lambda": 0.95}
    first, second = random_data(steps, 1), random_data(steps, 2)
    second = {name: x[:, 1:] for name, x in second.items()}
    first[end][-1] = True
    joined = {name: torch.cat((first[name], second[name])) for name in NAMES}
    together = generalized_advantages(**joined, **settings)
    alone = generalized_advantages(**first, **settings), generalized_advantages(**second, **settings)
    for index in range(2):
        torch.testing.assert_close(together[index], torch.cat([part[index] for part in alone]), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_next_value_at_a_terminated_step_reaches_nothing(bad: float) -> None:
    data = random_data(20, 2)
    data["terminations"][[4, 19]] = True
    clean = generalized_advantages(**data, gamma=0.99, gae_lambda=0.95)
    data["next_values"][data["terminations"]] = bad
    advantages, returns = generalized_advantages(**data, gamma=0.99, gae_lambda=0.95)
    # rtol 0 also says that everything is finite
    torch.testing.assert_close((advantages, returns), clean, rtol=0, atol=0)
    # target = r and advantage = r - V there
    ended = data["terminations"]
    torch.testing.assert_close(returns[ended], data["rewards"][ended])
    torch.testing.assert_close(advantages[ended], (data["rewards"] - data["values"])[ended])


@pytest.mark.parametrize("end", ["terminations", "truncations"])
def test_what_follows_an_episodes_end_never_reaches_it_even_if_nan(end: str) -> None:
    # the filler row of NEXT_STEP autoreset shows the final observation: where V of it is NaN, so is its advantage
    data = random_data(6, 1)
    data["terminations"][:], data["truncations"][:] = False, False
    data[end][2] = True
    clean, _ = generalized_advantages(**data, gamma=0.99, gae_lambda=0.95)
    data["values"][3] = float("nan")
    advantages, _ = generalized_advantages(**data, gamma=0.99, gae_lambda=0.95)
    torch.testing.assert_close(advantages[:3], clean[:3], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["flat", "trailing", "transposed", "short", "broadcast"])
def test_unequal_shapes_raise_instead_of_broadcasting(name: str, change: str) -> None:
    data = random_data(5, 3)
    x = data[name]
    changed = {"flat": x[:, 0], "trailing": x.unsqueeze(-1), "transposed": x.t(), "short": x[1:], "broadcast": x[:, :1]}
    with pytest.raises(ValueError, match="one shape"):
        generalized_advantages(**{**data, name: changed[change]}, gamma=0.99, gae_lambda=0.95)


@pytest.mark.parametrize("index", [(slice(None), 0), (slice(None), slice(None), None)], ids=["(T,)", "(T, N, 1)"])
def test_shapes_other_than_time_by_env_raise(index: tuple) -> None:
    with pytest.raises(ValueError, match="one shape"):
        generalized_advantages(**{n: x[index] for n, x in random_data(5, 3).items()}, gamma=0.99, gae_lambda=0.95)


def test_memory_layout_changes_nothing_and_inputs_are_left_alone() -> None:
    data = random_data(50, 3)
    expected = generalized_advantages(**data, gamma=0.99, gae_lambda=0.95)
    transposed = {name: x.t().contiguous().t() for name, x in data.items()}
    strided = {name: torch.stack((x, ~x if x.dtype == torch.bool else -x), -1)[..., 0] for name, x in data.items()}
    for other in (transposed, strided):
        assert not any(x.is_contiguous() for x in other.values())
        torch.testing.assert_close(
            generalized_advantages(**other, gamma=0.99, gae_lambda=0.95), expected, rtol=0, atol=0
        )
        torch.testing.assert_close(other, data, rtol=0, atol=0)


def test_results_carry_no_graph() -> None:
    data = random_data(5, 3)
    for name in ("rewards", "values", "next_values"):
        data[name].requires_grad_()
    advantages, returns = generalized_advantages(**data, gamma=0.99, gae_lambda=0.95)
    assert not advantages.requires_grad and not returns.requires_grad


# ---------------------------------------------------------------- normalisation


@pytest.mark.parametrize("bad", [5.0, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalized_over_the_valid_rows_and_zero_elsewhere(bad: float, dtype: torch.dtype) -> None:
    advantages = (3.0 + 7.0 * torch.randn(40, 3, dtype=torch.float64)).to(dtype)
    valid = torch.rand(40, 3) < 0.8
    rows = advantages[valid].double().numpy()
    normalized = normalize_advantages(advantages.masked_fill(~valid, bad), valid)
    assert torch.equal(normalized[~valid], torch.zeros(int((~valid).sum()), dtype=dtype))
    expected = (rows - rows.mean()) / rows.std(ddof=1)
    np.testing.assert_allclose(normalized[valid].numpy(), expected, rtol=1e-6, atol=1e-6)
    assert normalized[valid].double().mean().item() == pytest.approx(0.0, abs=1e-6)
    assert normalized[valid].double().std().item() == pytest.approx(1.0, abs=1e-6)


def test_a_large_offset_costs_no_precision() -> None:
    # 1e7 + (-1, -1, 2), each float32 exact: mean 1e7, sum of squares 6 for each of 1,000 triples; the sum of 3e10 is
    # beyond what float32 tells apart
    advantages = torch.tensor([[9_999_999.0], [9_999_999.0], [10_000_002.0]]).repeat(1000, 1)
    normalized = normalize_advantages(advantages, torch.ones(3000, 1, dtype=torch.bool))
    std = (6000 / 2999) ** 0.5
    torch.testing.assert_close(normalized[:3], torch.tensor([[-1 / std], [-1 / std], [2 / std]]))


@pytest.mark.parametrize("count", [0, 1, 6], ids=["none valid", "one valid", "all equal"])
def test_degenerate_rows_become_zero_instead_of_nan(count: int) -> None:
    valid = (torch.arange(6) < count).reshape(3, 2)
    assert torch.equal(normalize_advantages(torch.full((3, 2), 4.0), valid), torch.zeros(3, 2))


def test_two_ranks_normalize_as_one() -> None:
    advantages = torch.randn(20, 5, dtype=torch.float64)
    advantages[:, 3:] += 4.0
    valid = torch.rand(20, 5) < 0.7
    whole = normalize_advantages(advantages, valid)
    # unequal shares, so that a mean of the ranks' means would be wrong
    parts = on_ranks(
        lambda reduce: normalize_advantages(advantages[:, :3], valid[:, :3], reduce),
        lambda reduce: normalize_advantages(advantages[:, 3:], valid[:, 3:], reduce),
    )
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- discounted sums


@pytest.mark.parametrize("filler", [False, True], ids=["SAME_STEP", "NEXT_STEP"])
@pytest.mark.parametrize("split", range(1, 8))
def test_discounted_sum_includes_the_last_step_and_restarts_after_it(split: int, filler: bool) -> None:
    episode = [1.0] * 4 + [0.0] * filler
    rewards = torch.tensor(episode * 2, dtype=torch.float32).unsqueeze(1)
    ended, valid = torch.zeros_like(rewards, dtype=torch.bool), rewards > 0
    ended[[3, 3 + len(episode)]] = True
    # G = 1, 1 + .5 x 1 = 1.5, 1 + .5 x 1.5 = 1.75, 1 + .5 x 1.75 = 1.875
    expected = torch.tensor([1.0, 1.5, 1.75, 1.875] * 2, dtype=torch.float64)

    running = torch.zeros(1, dtype=torch.float64)
    first, between = discounted_sums(rewards[:split], ended[:split], running, 0.5)
    second, after = discounted_sums(rewards[split:], ended[split:], between, 0.5)
    assert torch.equal(torch.cat((first, second))[valid], expected)
    assert torch.equal(after, torch.zeros(1, dtype=torch.float64))
    assert torch.equal(running, torch.zeros(1, dtype=torch.float64))


def test_discounted_sums_of_environments_are_independent() -> None:
    rewards, ended = torch.randn(30, 4), torch.rand(30, 4) < 0.2
    start = torch.randn(4, dtype=torch.float64)
    sums, after = discounted_sums(rewards, ended, start, 0.9)
    for n in range(4):
        running, expected = float(start[n]), []
        for t in range(30):
            expected.append(float(rewards[t, n]) + 0.9 * running)
            running = 0.0 if ended[t, n] else expected[-1]
        np.testing.assert_allclose(sums[:, n].numpy(), expected, rtol=1e-12)
        assert after[n].item() == pytest.approx(running, rel=1e-12)


@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (2, 3), (64, 64), (2048, 1)])
def test_the_scan_equals_the_recursion(steps: int, envs: int) -> None:
    data = random_data(steps, envs)
    terms, ended = data["rewards"], data["truncations"]
    expected = recursive_advantages(terms, ended, 0.9405)
    torch.testing.assert_close(scan.sums_of_the_future(terms, ended, 0.9405), expected, rtol=1e-10, atol=1e-10)
    expected = recursive_sums(terms, ended, data["values"][0], 0.99)
    actual = scan.sums_of_the_past(terms, ended, data["values"][0], 0.99)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gamma", [-1.0, -1e-9, 1.01, 2.0, 99.0, float("nan")])
def test_gamma_outside_the_unit_interval_is_rejected(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        discounted_sums(torch.ones(2, 1), flags(2), torch.zeros(1, dtype=torch.float64), gamma)


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, (1.0, 1.0)), (1.0, (1.0, 2.0))])
def test_gamma_at_the_ends_of_the_unit_interval(gamma: float, expected: tuple[float, float]) -> None:
    sums, _ = discounted_sums(torch.ones(2, 1), flags(2), torch.zeros(1, dtype=torch.float64), gamma)
    assert sums[:, 0].tolist() == list(expected)
