"""Noise of a colour: a standard normal number at each step, correlated over the steps of a rollout."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lightning_ppo.policy.distributions import make_action_head
from lightning_ppo.policy.distributions.noise import colored_noise

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
STEPS = 64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [64, 7])
def test_each_number_is_a_standard_normal_one(exponent, steps):
    noise = colored_noise(torch.randn(steps, 40_000, generator=generator()), exponent)
    assert noise.shape == (steps, 40_000) and noise.dtype == torch.float32
    # means and variances of 40,000 samples have standard errors of 0.005 and 0.007
    torch.testing.assert_close(noise.mean(1), torch.zeros(steps), rtol=0, atol=0.025)
    torch.testing.assert_close(noise.var(1), torch.ones(steps), rtol=0, atol=0.04)


def test_power_falls_with_the_frequency_to_the_exponent():
    noise = colored_noise(torch.randn(STEPS, 20_000, generator=generator()), 1.0)
    power = torch.fft.rfft(noise, dim=0).abs().square().mean(1)
    # of f = 1, 2, ..., 31 times 1 / T; the constant part is treated as the lowest
    torch.testing.assert_close(power[1:32] / power[1], 1.0 / torch.arange(1.0, 32.0), rtol=0.05, atol=0)
    assert power[0] / power[1] == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("exponent, low, high", [(0.0, -0.05, 0.05), (0.5, 0.2, 0.4), (1.0, 0.55, 0.75)])
def test_neighbouring_steps_resemble_each_other_the_more_the_larger_it_is(exponent, low, high):
    noise = colored_noise(torch.randn(STEPS, 5_000, generator=generator()), exponent)
    assert low < (noise[1:] * noise[:-1]).mean() < high


def test_white_noise_stays_as_it_is_and_so_does_a_single_step():
    white = torch.randn(STEPS, 4, 3, generator=generator())
    torch.testing.assert_close(colored_noise(white, 0.0), white, rtol=0, atol=1e-5)
    torch.testing.assert_close(colored_noise(white[:1], 1.0), white[:1])


def test_copies_and_dimensions_have_noise_of_their_own():
    white = torch.randn(STEPS, 4, 3, generator=generator())
    noise = colored_noise(white, 1.0)
    for copy in range(4):
        for dimension in range(3):
            torch.testing.assert_close(noise[:, copy, dimension], colored_noise(white[:, copy, dimension], 1.0))


@pytest.mark.parametrize("distribution", ["gaussian", "state_gaussian", "tanh_gaussian"])
def test_gaussian_actions_take_their_noise_from_it(distribution):
    white, pink = (make_action_head(BOX, distribution) for _ in range(2))
    pink.set_noise_color(1.0)
    expected = colored_noise(white.noise((STEPS, 4), generator()), 1.0)
    torch.testing.assert_close(pink.noise((STEPS, 4), generator()), expected)
    # of a batch no row follows another
    torch.testing.assert_close(pink.noise((STEPS,), generator()), white.noise((STEPS,), generator()))


def test_the_parts_of_a_dict_have_it_each():
    space = spaces.Dict({"arm": BOX, "hand": spaces.Discrete(2)})
    white, pink = (make_action_head(space) for _ in range(2))
    pink.set_noise_color(1.0)
    before, after = (head.noise((STEPS, 4), generator()) for head in (white, pink))
    torch.testing.assert_close(after[..., :3], colored_noise(before[..., :3], 1.0))
    torch.testing.assert_close(after[..., 3:], before[..., 3:])
