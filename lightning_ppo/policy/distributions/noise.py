"""Noise that is correlated in time."""

import torch
from torch import Tensor


def colored_noise(white: Tensor, exponent: float) -> Tensor:
    """Return noise (T, ...) whose power falls with frequency f as 1 / f^exponent, made of white noise (T, ...).

    Each number is a standard normal one, as before; numbers of neighbouring steps resemble each other. The constant
    part has the power of the lowest frequency, 1 / T. Exponent 0 is white, 1 pink noise (Hollenstein et al. 2024,
    "Colored Noise in PPO", arXiv:2312.11091).

    Args:
        white: Independent standard normal numbers.
        exponent: Of the spectrum.
    """
    steps = len(white)
    frequency = torch.arange(steps, device=white.device)
    frequency = torch.minimum(frequency, steps - frequency).clamp(min=1)
    amplitude = frequency.to(white.dtype) ** (-0.5 * exponent)
    amplitude = amplitude / amplitude.square().mean().sqrt()  # which keeps the variance at 1
    spectrum = torch.fft.rfft(white, dim=0)
    amplitude = amplitude[: len(spectrum)].reshape(-1, *[1] * (white.dim() - 1))
    return torch.fft.irfft(spectrum * amplitude, steps, dim=0)
