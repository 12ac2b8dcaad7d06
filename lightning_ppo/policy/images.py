"""Convolutional encoders of images."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_ppo.policy.layers import orthogonal_
from lightning_ppo.speed import switch


def channels_come_last(shape: Sequence[int]) -> bool:
    """Return whether images of a shape are (H, W, C) rather than (C, H, W): the channels are the smallest dimension."""
    return shape[2] <= min(shape[:2])


class PixelConv2d(nn.Conv2d):
    """A convolution of pixels from 0 to 255 as if they were divided by 255; the weights are, which are fewer."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        if pixels.dtype == torch.float16:  # which cannot tell such small weights apart
            return super().forward(pixels / 255.0)
        return nn.functional.conv2d(pixels, self.weight / 255.0, self.bias, self.stride, self.padding)


class ImageEncoder(nn.Sequential, ABC):
    """Layers that turn images into features, and the way of uint8 pixels into them.

    Args:
        shape: Of one image, (H, W, C) or (C, H, W); the smallest dimension is taken for the channels.
    """

    num_features: int

    def __init__(self, shape: Sequence[int]) -> None:
        self.channels_last = channels_come_last(shape)
        super().__init__(*self.layers(*((shape[2], shape[0], shape[1]) if self.channels_last else shape)))

    @abstractmethod
    def layers(self, channels: int, height: int, width: int) -> list[nn.Module]:
        """Return the layers for images of a size; the first takes pixels from 0 to 255."""

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, num_features) of uint8 images (B, *shape)."""
        if self.channels_last:
            images = images.movedim(-1, -3)
        device = images.device.type
        # whole numbers up to 255 are exact in half precision; what is not channels_last yet becomes so as bytes
        own = next(self.parameters()).dtype
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own
        if switch.is_on():
            images = images.contiguous(memory_format=torch.channels_last)
        return super().forward(images.to(dtype))


class NatureCNN(ImageEncoder):
    """The convolutional network of Mnih et al. 2015, "Human-level control through deep reinforcement learning"."""

    num_features = 512

    def layers(self, channels: int, height: int, width: int) -> list[nn.Module]:
        """Return three convolutions and a linear layer."""
        layers: list[nn.Module] = []
        kinds = PixelConv2d, nn.Conv2d, nn.Conv2d
        for kind, outputs, kernel, stride in zip(kinds, (32, 64, 64), (8, 4, 3), (4, 2, 1), strict=True):
            layers += [orthogonal_(kind(channels, outputs, kernel, stride), math.sqrt(2.0)), nn.ReLU()]
            channels, height, width = outputs, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        flat = orthogonal_(nn.Linear(channels * height * width, self.num_features), math.sqrt(2.0))
        return [*layers, nn.Flatten(), flat, nn.ReLU()]


class Residual(nn.Sequential):
    """Adds the output of two convolutions to its input (B, C, H, W).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        convolutions = (orthogonal_(nn.Conv2d(channels, channels, 3, padding=1), 1.0) for _ in range(2))
        super().__init__(*(layer for convolution in convolutions for layer in (nn.ReLU(), convolution)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x + super().forward(x)


class ImpalaCNN(ImageEncoder):
    """The residual network of Espeholt et al. 2018, "IMPALA", figure 3 (right), without its LSTM."""

    num_features = 256

    def layers(self, channels: int, height: int, width: int) -> list[nn.Module]:
        """Return three sections of a convolution and two residual blocks, and a linear layer."""
        layers: list[nn.Module] = []
        for kind, outputs in ((PixelConv2d, 16), (nn.Conv2d, 32), (nn.Conv2d, 32)):
            layers += [orthogonal_(kind(channels, outputs, 3, padding=1), 1.0), nn.MaxPool2d(3, 2, 1)]
            layers += [Residual(outputs), Residual(outputs)]
            channels, height, width = outputs, (height + 1) // 2, (width + 1) // 2
        flat = orthogonal_(nn.Linear(channels * height * width, self.num_features), math.sqrt(2.0))
        return [*layers, nn.ReLU(), nn.Flatten(), flat, nn.ReLU()]
