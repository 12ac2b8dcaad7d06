"""Running mean and variance as module buffers: frozen within an iteration, merged over ranks, saved with the agent."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ppo.support.distributed import Reduce

_WIDE = (torch.int32, torch.int64, torch.uint32, torch.uint64)
"""Integers that float32 cannot hold."""


def _identity(x: Tensor) -> Tensor:
    return x


class RunningMoments(nn.Module):
    """Mean and population variance of everything seen so far, merged batch by batch.

    The merge is that of Chan, Golub and LeVeque 1979. Statistics are float64 whatever the precision of the module
    they live in: a half-precision count would stop growing at 2,048.

    Args:
        shape: Shape of one sample.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningMoments":
        for name in ("mean", "variance", "count"):
            buffer = getattr(self, name)
            # follow a change of device, not of dtype
            setattr(self, name, buffer.to(fn(torch.empty(0, dtype=buffer.dtype, device=buffer.device)).device))
        return self

    @torch.no_grad()
    def update(self, samples: Tensor, reduce: Reduce = _identity) -> None:
        """Merge samples into the statistics.

        Args:
            samples: (K, *shape); K may differ among ranks and may be 0.
            reduce: Sums a float64 tensor over all ranks, so that every rank ends with the statistics of all samples.
        """
        samples = samples.double()
        size = self.mean.numel()
        sums = torch.cat((samples.new_tensor([samples.shape[0]]), samples.sum(0).reshape(-1)))
        sums = reduce(sums)
        batch_count = sums[0]
        batch_mean = (sums[1:] / batch_count.clamp(min=1.0)).reshape(self.mean.shape)
        squares = reduce((samples - batch_mean).square().sum(0).reshape(size)).reshape(self.mean.shape)
        total = self.count + batch_count
        safe_total = total.clamp(min=1.0)
        delta = batch_mean - self.mean
        # before the first sample the variance is the neutral 1, which must not be counted
        moment = self.variance * self.count + squares + delta.square() * self.count * batch_count / safe_total
        seen = batch_count > 0
        self.mean.copy_(torch.where(seen, self.mean + delta * batch_count / safe_total, self.mean))
        self.variance.copy_(torch.where(seen, moment / safe_total, self.variance))
        self.count.copy_(total)


class ObservationNormalizer(RunningMoments):
    """Shifts and scales observations to mean 0 and variance 1, then clips them.

    The mean is subtracted before anything is scaled: `x * scale + shift` has no digits left where a feature is large
    and nearly constant. `offset` is the mean in the precision of the result, `shift` what that leaves out, scaled. From
    integers of 32 bits and more it is subtracted in float64, as NumPy does, so that all actors see the same numbers.

    `forward` uses statistics that only `update` changes, so they are frozen while a rollout is collected and learnt
    from. In eval mode `update` does nothing.

    Args:
        shape: Shape of one observation.
        clip: Bound on the result.
        epsilon: Added to the variance before the square root.
    """

    offset: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__(shape)
        self.clip = clip
        self.epsilon = epsilon
        self.register_buffer("offset", torch.zeros(shape), persistent=False)
        self.register_buffer("scale", torch.ones(shape), persistent=False)
        self.register_buffer("shift", torch.zeros(shape), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_after_loading)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ObservationNormalizer":
        super()._apply(fn, recurse)
        dtype = torch.promote_types(fn(self.scale.new_empty(0)).dtype, torch.float32)
        changed = dtype != self.scale.dtype
        for name in ("offset", "scale", "shift"):
            setattr(self, name, getattr(self, name).to(self.mean.device, dtype))
        if changed:
            self._refresh()
        return self

    @torch.no_grad()
    def _refresh(self) -> None:
        scale = (self.variance + self.epsilon).rsqrt()
        self.offset.copy_(self.mean)
        self.scale.copy_(scale)
        self.shift.copy_((self.offset.double() - self.mean) * scale)

    def update(self, samples: Tensor, reduce: Reduce = _identity) -> None:
        """Merge observations (K, *shape) into the statistics, in training mode only."""
        if self.training:
            super().update(samples, reduce)
            self._refresh()

    def forward(self, observations: Tensor) -> Tensor:
        """Return normalised observations (B, *shape), float32 or, in a module of float64, that."""
        scale = self.scale
        dtype = scale.dtype
        if observations.dtype != dtype:
            observations = observations.to(torch.float64 if observations.dtype in _WIDE else dtype)
        centred = (observations - self.offset).to(dtype)
        return torch.addcmul(self.shift, centred, scale).clamp_(-self.clip, self.clip)

    def inverse(self, normalized: Tensor) -> Tensor:
        """Return the observations (B, *shape) that `forward` would map to `normalized`, if none was clipped."""
        return (normalized - self.shift) / self.scale + self.offset


def _refresh_after_loading(normalizer: ObservationNormalizer, _: Any) -> None:
    normalizer._refresh()


class RewardScaler(RunningMoments):
    """Divides rewards by the standard deviation of the discounted return, then clips them.

    `update` takes the discounted sums that `advantages.discounted_sums` computes.

    Args:
        clip: Bound on the result.
        epsilon: Added to the variance before the square root.
    """

    def __init__(self, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__(())
        self.clip = clip
        self.epsilon = epsilon

    def forward(self, rewards: Tensor) -> Tensor:
        """Return scaled rewards of any shape."""
        scale = (self.variance + self.epsilon).rsqrt().to(rewards.dtype)
        return (rewards * scale).clamp(-self.clip, self.clip)
