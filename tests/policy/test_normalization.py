"""Running statistics: merging, freezing, precision, and what they do to data."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_ppo.policy.normalization import ObservationNormalizer, RewardScaler, RunningMoments


def moments(*batches: Tensor, shape: tuple[int, ...] = ()) -> RunningMoments:
    """Moments after merging the batches one by one."""
    result = RunningMoments(shape)
    for batch in batches:
        result.update(batch)
    return result


def statistics(module: RunningMoments) -> tuple[Tensor, Tensor, Tensor]:
    return module.mean.clone(), module.variance.clone(), module.count.clone()


def normalizer_of(samples: Tensor, **kwargs: float) -> ObservationNormalizer:
    normalizer = ObservationNormalizer(tuple(samples.shape[1:]), **kwargs)
    normalizer.update(samples)
    return normalizer


def on_ranks(*tasks: Callable[[Callable[[Tensor], Tensor]], None]) -> None:
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
        for future in [pool.submit(task, reduce_of(rank)) for rank, task in enumerate(tasks)]:
            future.result()


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=str)
def test_running_moments_are_those_of_the_concatenation(shape: tuple[int, ...]) -> None:
    batches = [100.0 + torch.randn(size, *shape) for size in (3, 4, 5, 1)]
    merged = moments(*batches, shape=shape)
    samples = torch.cat(batches).double().numpy()
    np.testing.assert_allclose(merged.mean.numpy(), samples.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.variance.numpy(), samples.var(0), rtol=1e-10)
    assert merged.count.item() == 13


def test_running_moments_of_matrices() -> None:
    first = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    merged = moments(first, shape=(2, 2))
    assert torch.equal(merged.mean, first[0].double())
    assert torch.equal(merged.variance, torch.zeros(2, 2, dtype=torch.float64))
    merged.update(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [0.0, 0.0]]]))
    # lower left 3, 3, 0: mean 2, variance (1 + 1 + 4) / 3 = 2; lower right 5, 4, 0: mean 3, (4 + 1 + 9) / 3 = 14 / 3
    torch.testing.assert_close(merged.mean, torch.tensor([[1.0, 2.0], [2.0, 3.0]], dtype=torch.float64))
    torch.testing.assert_close(merged.variance, torch.tensor([[0.0, 0.0], [2.0, 14 / 3]], dtype=torch.float64))


def check_union_of_1_2_3_and_10_20(merged: RunningMoments) -> None:
    # 36 / 5 = 7.2; (38.44 + 27.04 + 17.64 + 7.84 + 163.84) / 5 = 254.8 / 5 = 50.96
    assert merged.mean.item() == pytest.approx(7.2, rel=1e-14)
    assert merged.variance.item() == pytest.approx(50.96, rel=1e-14)
    assert merged.count.item() == 5


def test_merge_is_the_union() -> None:
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0])
    check_union_of_1_2_3_and_10_20(moments(first, second))
    check_union_of_1_2_3_and_10_20(moments(second, first))


def test_two_ranks_merge_to_the_union() -> None:
    ranks = RunningMoments(), RunningMoments()
    on_ranks(
        lambda reduce: ranks[0].update(torch.tensor([1.0, 2.0, 3.0]), reduce),
        lambda reduce: ranks[1].update(torch.tensor([10.0, 20.0]), reduce),
    )
    check_union_of_1_2_3_and_10_20(ranks[0])
    assert torch.equal(torch.stack(statistics(ranks[0])), torch.stack(statistics(ranks[1])))


@pytest.mark.parametrize("sizes", [(15, 19), (0, 4), (4, 0)])
def test_ranks_follow_one_process_over_several_updates(sizes: tuple[int, int]) -> None:
    # multiples of 1/8 add up without rounding, so that the means must be equal to the last bit
    batches = [[torch.randint(-80, 80, (size, 3)) / 8 + shift for size in sizes] for shift in (0, 1, 5)]
    single = moments(*(torch.cat(pair) for pair in batches), shape=(3,))
    ranks = RunningMoments((3,)), RunningMoments((3,))
    for first, second in batches:
        on_ranks(
            lambda reduce, x=first: ranks[0].update(x, reduce), lambda reduce, x=second: ranks[1].update(x, reduce)
        )
    for rank in ranks:
        assert rank.count.item() == 3 * sum(sizes)
        assert torch.equal(rank.mean, single.mean)
        torch.testing.assert_close(rank.variance, single.variance, rtol=1e-14, atol=0)
    torch.testing.assert_close(statistics(ranks[0]), statistics(ranks[1]), rtol=0, atol=0)


def test_copies_are_independent() -> None:
    original = moments(torch.randn(10))
    before, copied = statistics(original), deepcopy(original)
    copied.update(torch.full((5,), 100.0))
    torch.testing.assert_close(statistics(original), before, rtol=0, atol=0)


def test_a_shift_far_larger_than_the_spread_keeps_the_variance() -> None:
    # integers 0..9 have variance (100 - 1) / 12 = 8.25 wherever they lie
    samples = 1e8 + torch.arange(10, dtype=torch.float64)
    assert moments(samples[:4], samples[4:]).variance.item() == pytest.approx(8.25, rel=1e-6)


@pytest.mark.parametrize("seen", [False, True], ids=["untouched", "after samples"])
def test_an_empty_batch_changes_nothing(seen: bool) -> None:
    normalizer = ObservationNormalizer((3,))
    if seen:
        normalizer.update(5.0 + 2.0 * torch.randn(10, 3))
    before, observations = statistics(normalizer), torch.randn(4, 3)
    expected = normalizer(observations)
    normalizer.update(torch.empty(0, 3))
    torch.testing.assert_close(statistics(normalizer), before, rtol=0, atol=0)
    torch.testing.assert_close(normalizer(observations), expected, rtol=0, atol=0)


# ---------------------------------------------------------------- observations


def test_observations_come_out_with_mean_zero_and_variance_one() -> None:
    observations = torch.tensor([3.0, -50.0]) + torch.tensor([2.0, 0.01]) * torch.randn(1000, 2)
    normalized = normalizer_of(observations)(observations).double()
    torch.testing.assert_close(normalized.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(normalized.var(0, correction=0), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)


def test_observations_are_unchanged_before_the_first_update() -> None:
    observations = torch.randn(5, 3)
    torch.testing.assert_close(ObservationNormalizer((3,))(observations), observations)


def test_hand_worked_observation() -> None:
    # 1 and 5: mean 3, variance 4; (7 - 3) / 2 = 2
    normalizer = normalizer_of(torch.tensor([[1.0], [5.0]]))
    torch.testing.assert_close(normalizer(torch.tensor([[7.0], [3.0], [0.0]])), torch.tensor([[2.0], [0.0], [-1.5]]))


def test_eval_mode_freezes_the_statistics() -> None:
    normalizer = normalizer_of(torch.randn(50, 3))
    before, observations = statistics(normalizer), torch.randn(4, 3)
    expected = normalizer(observations)
    normalizer.eval()
    normalizer.update(torch.randn(50, 3) + 100.0)
    torch.testing.assert_close(statistics(normalizer), before, rtol=0, atol=0)
    assert torch.equal(normalizer(observations), expected)
    # and training thaws them
    normalizer.train()
    normalizer.update(torch.randn(50, 3) + 100.0)
    assert (normalizer.mean > before[0] + 40.0).all() and not torch.equal(normalizer(observations), expected)


def test_forward_changes_no_statistics_and_no_input() -> None:
    normalizer = normalizer_of(torch.randn(50, 3))
    before, observations = statistics(normalizer), 100.0 * torch.ones(4, 3)
    normalizer(observations)
    torch.testing.assert_close(statistics(normalizer), before, rtol=0, atol=0)
    assert torch.equal(observations, 100.0 * torch.ones(4, 3))


def test_inverse_round_trip() -> None:
    observations = torch.tensor([3.0, -50.0, 0.0]) + torch.tensor([2.0, 0.1, 1e-2]) * torch.randn(100, 3)
    normalizer = normalizer_of(observations)
    torch.testing.assert_close(normalizer.inverse(normalizer(observations)), observations, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [10.0, 2.5])
def test_outputs_lie_within_the_clip(clip: float) -> None:
    normalizer = normalizer_of(torch.randn(100, 1), clip=clip)
    normalized = normalizer(torch.tensor([[-1e6], [0.5], [1e6]]))
    assert normalized[0].item() == -clip and normalized[2].item() == clip and abs(normalized[1].item()) < 1.0


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("single sample", torch.tensor([[3.0, -4.0]])),
        ("constant feature", torch.tensor([[7.0, 1.0], [7.0, 2.0], [7.0, 3.0]])),
        ("outlier", torch.tensor([[0.0, 1.0]] * 99 + [[1e4, 1.0]])),
        ("huge constant", torch.full((10, 2), 1e20)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_degenerate_data_gives_finite_outputs(name: str, samples: Tensor) -> None:
    normalizer = normalizer_of(samples)
    # what was seen, a bit more, and much more
    for probe in (samples, samples + 1e-3, samples * 100.0 - 1.0):
        normalized = normalizer(probe)
        assert torch.isfinite(normalized).all() and (normalized.abs() <= 10.0).all()


@pytest.mark.parametrize("value", [0.0, 7.0, -1234.5])
def test_a_constant_feature_maps_to_zero(value: float) -> None:
    samples = torch.full((10, 1), value)
    torch.testing.assert_close(normalizer_of(samples)(samples), torch.zeros(10, 1), rtol=0, atol=1e-2)


def test_integer_observations_count_with_their_values() -> None:
    # 200 + 250 and a count of 300 overflow uint8: mean 225, variance 625
    normalizer = normalizer_of(torch.tensor([[200], [250]], dtype=torch.uint8).repeat(150, 1))
    assert (normalizer.mean.item(), normalizer.variance.item(), normalizer.count.item()) == (225.0, 625.0, 300.0)


# ---------------------------------------------------------------- precision and state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("way", ["to", "shorthand"])
def test_statistics_stay_float64_in_a_module_of_low_precision(dtype: torch.dtype, way: str) -> None:
    normalizer, scaler = normalizer_of(1000.0 + torch.randn(5000, 3)), RewardScaler()
    scaler.update(torch.randn(5000))
    module = nn.ModuleDict({"linear": nn.Linear(3, 2), "observations": normalizer, "rewards": scaler})
    before, observations = [statistics(m) for m in (normalizer, scaler)], 1000.0 + torch.randn(4, 3)
    expected = normalizer(observations)
    shorthands = {torch.bfloat16: module.bfloat16, torch.float16: module.half, torch.float32: module.float}
    _ = module.to(dtype) if way == "to" else shorthands[dtype]()
    assert module["linear"].weight.dtype == dtype
    # assert_close also compares dtypes
    torch.testing.assert_close([statistics(m) for m in (normalizer, scaler)], before, rtol=0, atol=0)
    torch.testing.assert_close(normalizer(observations), expected, rtol=0, atol=0)
    # one more sample still counts, beyond the 2,048 at which a half-precision count stops
    normalizer.update(observations[:1])
    assert normalizer.count.item() == 5001


def test_statistics_follow_the_device() -> None:
    normalizer = normalizer_of(torch.randn(5, 3)).to("meta")
    assert all(buffer.is_meta for buffer in normalizer.buffers()) and normalizer.count.dtype == torch.float64


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "within a module"])
def test_state_dict_restores_statistics_and_what_forward_does(nested: bool) -> None:
    saved, loaded = normalizer_of(5.0 + 3.0 * torch.randn(100, 3)), ObservationNormalizer((3,))
    if nested:
        nn.ModuleDict({"a": loaded}).load_state_dict(nn.ModuleDict({"a": saved}).state_dict())
    else:
        loaded.load_state_dict(saved.state_dict())
    observations = torch.randn(20, 3)
    assert torch.equal(loaded(observations), saved(observations))
    assert torch.equal(loaded.inverse(observations), saved.inverse(observations))
    # and both go on alike
    more = torch.randn(10, 3)
    saved.update(more)
    loaded.update(more)
    torch.testing.assert_close(statistics(loaded), statistics(saved), rtol=0, atol=0)
    assert torch.equal(loaded(observations), saved(observations))


def test_reward_scaler_state_dict_round_trip() -> None:
    saved, loaded = RewardScaler(), RewardScaler()
    saved.update(4.0 * torch.randn(100))
    loaded.load_state_dict(saved.state_dict())
    rewards = torch.randn(5, 2)
    assert torch.equal(loaded(rewards), saved(rewards)) and not torch.equal(loaded(rewards), RewardScaler()(rewards))


# ---------------------------------------------------------------- rewards


def test_rewards_are_divided_by_the_standard_deviation_and_not_shifted() -> None:
    scaler = RewardScaler()
    # mean 14, standard deviation 4
    scaler.update(torch.tensor([10.0, 18.0]))
    rewards = torch.tensor([[4.0, -2.0], [0.0, 8.0]])
    torch.testing.assert_close(scaler(rewards), torch.tensor([[1.0, -0.5], [0.0, 2.0]]))


def test_scaled_rewards_are_clipped() -> None:
    scaler = RewardScaler(clip=3.0)
    scaler.update(torch.tensor([10.0, 18.0]))
    # 100 / 4 = 25
    assert scaler(torch.tensor([-100.0, 4.0, 100.0])).tolist() == pytest.approx([-3.0, 1.0, 3.0])


def test_rewards_are_unchanged_before_the_first_update() -> None:
    rewards = torch.randn(3, 2)
    torch.testing.assert_close(RewardScaler()(rewards), rewards)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_returns_give_finite_rewards(value: float) -> None:
    scaler = RewardScaler()
    scaler.update(torch.full((10,), value))
    # standard deviation 1e-4 from epsilon: 1 / 1e-4 is clipped to 10
    assert scaler(torch.tensor([0.0, 1.0, -1.0])).tolist() == [0.0, 10.0, -10.0]
