"""Hand-written convolutional networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.entry import Entry, Inputs

__all__ = ["entries"]


def entries() -> list[Entry]:
    """Return the hand-written convolutional networks."""
    return [
        Entry("resnet", "cnn", ResNet, _picture(3, 32)),
        Entry("mbconv-se", "cnn", MBConv, _picture(16, 16)),
        Entry("u-net", "cnn", UNet, _picture(3, 32)),
        Entry("shufflenet", "cnn", ShuffleNet, _picture(3, 32)),
        Entry("densenet", "cnn", DenseNet, _picture(3, 16)),
        Entry("inception", "cnn", Inception, _picture(3, 16)),
        Entry("vgg", "cnn", vgg, _picture(3, 16)),
        Entry("generator", "cnn", Generator, lambda batch: (torch.randn(batch, 8),)),
        Entry("conv1d-tcn", "cnn", TemporalNet, lambda batch: (torch.randn(batch, 4, 40),)),
        Entry("conv3d-transformer", "cnn", VideoTransformer, lambda batch: (torch.randn(batch, 3, 4, 16, 16),)),
        Entry("fpn-dict-outputs", "cnn", FeaturePyramid, _picture(3, 32)),
        Entry("pre-activation", "cnn", PreActivation, _picture(8, 16)),
        Entry("pixel-shuffle", "cnn", SuperResolution, _picture(3, 12)),
    ]


def _picture(channels: int, side: int) -> Callable[[int], Inputs]:
    return lambda batch: (torch.randn(batch, channels, side, side),)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias and its batch norm, "same" padding."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """The residual block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, stride=stride)
        self.second = conv_bn(outputs, outputs)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.second(torch.relu(self.first(x))) + self.short(x))


class ResNet(nn.Module):
    """Stem, three residual blocks, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        self.layers = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 32, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layers(self.stem(x)))
        return self.head(torch.flatten(x, 1))


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-excitation, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(conv_bn(16, 64, 1), nn.SiLU(inplace=True))
        self.depthwise = nn.Sequential(conv_bn(64, 64, 3, groups=64), nn.SiLU(inplace=True))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 4, 1), nn.SiLU(), nn.Conv2d(4, 64, 1), nn.Sigmoid()
        )
        self.project = conv_bn(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        return x + self.project(y * self.squeeze(y))


class UNet(nn.Module):
    """Two levels down, two up, with skip connections, a transposed convolution and a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = self._double(3, 8), self._double(8, 16), self._double(16, 32)
        self.raise2 = nn.ConvTranspose2d(32, 16, 2, 2)
        self.up2, self.up1 = self._double(32, 16), self._double(24, 8)
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv_bn(inputs, outputs), nn.ReLU(), conv_bn(outputs, outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        low = self.middle(functional.max_pool2d(two, 2))
        up = self.up2(torch.cat([self.raise2(low), two], 1))
        up = functional.interpolate(up, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.up1(torch.cat([up, one], 1)))


class ShuffleUnit(nn.Module):
    """Channel split, grouped and depthwise convolutions, channel shuffle."""

    def __init__(self, channels: int, groups: int = 2) -> None:
        super().__init__()
        half = channels // 2
        self.groups = groups
        self.branch = nn.Sequential(
            conv_bn(half, half, 1, groups=groups),
            nn.ReLU(),
            conv_bn(half, half, 3, groups=half),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, torch.relu(self.branch(right))], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """A stem, three shuffle units, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 16, 3, 2), nn.ReLU())
        self.units = nn.Sequential(*(ShuffleUnit(16) for _ in range(3)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.stem(x)).mean([2, 3]))


class DenseNet(nn.Module):
    """Concatenated features, batch norm before the convolution, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        widths = (8, 12, 16)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 4, 3, padding=1, bias=False)) for n in widths
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        for layer in self.layers:
            features = torch.cat([features, layer(features)], 1)
        return self.head(functional.adaptive_avg_pool2d(self.transition(features), 1).flatten(1))


class Inception(nn.Module):
    """Parallel branches of several kernel sizes, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(conv_bn(3, 4, kernel), nn.ReLU()) for kernel in (1, 3, 5))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(3, 4, 1))
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches] + [self.pool(x)]
        return functional.hardswish(self.norm(torch.cat(parts, 1)))


def vgg() -> nn.Module:
    """Return a plain stack with dropout, ReLU6 and a large head."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.1), nn.MaxPool2d(2, ceil_mode=True)),
        *(nn.Flatten(), nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)),
    )


class Generator(nn.Module):
    """The generator of a DCGAN: transposed convolutions and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.ConvTranspose2d(8, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU(True)),
            *(nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2, bias=False), nn.BatchNorm2d(8), nn.ELU()),
            *(nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()),
        )

    def forward(self, noise: Tensor) -> Tensor:
        return self.body(noise[:, :, None, None])


class TemporalNet(nn.Module):
    """Dilated causal convolutions with weight normalisation."""

    def __init__(self) -> None:
        super().__init__()
        weight_norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv1d(4 if dilation == 1 else 8, 8, 3, dilation=dilation)) for dilation in (1, 2, 4)
        )
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(functional.pad(x, (2 * layer.dilation[0], 0))))
        return self.head(self.norm(x)[..., -1])


class VideoTransformer(nn.Module):
    """A 3D convolutional network whose features a transformer encoder reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv3d(3, 8, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(8), nn.ReLU()),
            *(nn.MaxPool3d(2), nn.Conv3d(8, 16, 1)),
        )
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.position = nn.Parameter(torch.randn(1, 32, 16) * 0.1)
        self.head = nn.Linear(16, 5)

    def forward(self, video: Tensor) -> Tensor:
        tokens = self.stem(video).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens).mean(1))


class FeaturePyramid(nn.Module):
    """Several scales, returned as a dict with a nested list."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(conv_bn(n, 2 * n, 3, 2), nn.ReLU()) for n in (3, 6, 12))
        self.lateral = nn.ModuleList(nn.Conv2d(2 * n, 8, 1) for n in (3, 6, 12))

    def forward(self, image: Tensor) -> dict[str, Tensor | list[Tensor]]:
        features: list[Tensor] = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        maps = [lateral(each) for lateral, each in zip(self.lateral, features, strict=True)]
        for fine, coarse in ((1, 2), (0, 1)):
            maps[fine] = maps[fine] + functional.interpolate(maps[coarse], size=maps[fine].shape[-2:], mode="nearest")
        return {"maps": maps, "top": features[-1].amax((2, 3))}


class PreActivation(nn.Module):
    """Batch norm first, then a convolution with padding: it folds into what follows only with care."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 4, 1)
        self.prelu = nn.PReLU(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.conv(self.norm(x))
        return self.conv2(self.norm2(y)), self.prelu(y)


class SuperResolution(nn.Module):
    """Sub-pixel convolution, reflection padding, instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.conv = nn.Conv2d(3, 12, 3)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.last = nn.Conv2d(3, 3, 3, padding="same", padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        x = functional.softplus(self.norm(self.conv(self.pad(x))))
        return self.last(functional.pixel_shuffle(x, 2))
