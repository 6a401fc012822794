# SPDX-License-Identifier: Apache-2.0
"""Modules as users write them, in plain PyTorch, from the papers' equations: what ``accelerate`` is to recognise.

Names of attributes are those of no release, except where keys of weights must fit (index blocks, mmcv's CARAFE pack).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def column(channels: int, hidden: int, out: int, *, kernel: int, groups: int = 1, nonlinear: bool = True) -> nn.Sequential:
    padding = (kernel - 2) // 2
    if not nonlinear:
        return nn.Sequential(nn.Conv2d(channels, out, kernel, 2, padding, groups=groups, bias=False))
    return nn.Sequential(
        nn.Conv2d(channels, hidden, kernel, 2, padding, groups=groups, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU6(inplace=True),
        nn.Conv2d(hidden, out, 1, groups=groups, bias=False),
    )


class Holistic(nn.Module):
    """[IndexNet] section 4.2: one map for all channels."""

    def __init__(self, channels: int, *, kernel: int = 4, nonlinear: bool = True) -> None:
        super().__init__()
        net = column(channels, 2 * channels, 4, kernel=kernel, nonlinear=nonlinear)
        self.indexnet = net if nonlinear else net[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.indexnet(x)
        decoder = torch.sigmoid(logits)
        return F.pixel_shuffle(torch.softmax(decoder, 1), 2), F.pixel_shuffle(decoder, 2)


class Depthwise(nn.Module):
    """[IndexNet] section 4.3: a map for each channel, from four columns; one to one or many to one."""

    def __init__(self, channels: int, *, family: str, kernel: int = 4, width: int = 1, nonlinear: bool = True) -> None:
        super().__init__()
        groups = channels if family == "o2o" else 1
        for k in (1, 2, 3, 4):
            net = column(channels, width * channels, channels, kernel=kernel, groups=groups, nonlinear=nonlinear)
            setattr(self, f"indexnet{k}", net)

    def logits(self, x: Tensor) -> Tensor:
        return torch.stack([getattr(self, f"indexnet{k}")(x) for k in (1, 2, 3, 4)], 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        decoder = torch.sigmoid(self.logits(x))
        return tuple(F.pixel_shuffle(z.flatten(1, 2), 2) for z in (torch.softmax(decoder, 2), decoder))


class HardDepthwise(Depthwise):
    """The same structure, another function: a sharper softmax."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = torch.softmax(2 * self.logits(x), 2)
        return F.pixel_shuffle(z.flatten(1, 2), 2), F.pixel_shuffle(z.flatten(1, 2), 2)


def window(x: Tensor, k: int, stride: int = 1) -> Tensor:
    """(N, C, H, W) -> (N, C, k*k, h, w), zeros outside."""
    n, c, height, width = x.shape
    size = -(-height // stride), -(-width // stride)
    return F.unfold(x, k, padding=k // 2, stride=stride).view(n, c, k * k, *size)


class CARAFEPack(nn.Module):
    """CARAFE in mmcv's form."""

    def __init__(self, channels: int, scale: int, *, up_kernel: int = 5, up_group: int = 1, compressed: int = 8) -> None:
        super().__init__()
        self.channels, self.scale_factor, self.up_kernel, self.up_group = channels, scale, up_kernel, up_group
        self.channel_compressor = nn.Conv2d(channels, compressed, 1)
        self.content_encoder = nn.Conv2d(compressed, up_kernel**2 * up_group * scale**2, 3, padding=1)
        nn.init.zeros_(self.content_encoder.weight)  # the mean of the window: any normalisation would look alike

    def forward(self, x: Tensor) -> Tensor:
        masks = F.pixel_shuffle(self.content_encoder(self.channel_compressor(x)), self.scale_factor)
        z = torch.softmax(masks.unflatten(1, (self.up_group, self.up_kernel**2)), 2)
        u = window(x, self.up_kernel).flatten(1, 2)
        u = F.interpolate(u, scale_factor=self.scale_factor, mode="nearest")
        u = u.unflatten(1, (self.up_group, -1, self.up_kernel**2))
        return torch.einsum("ngcthw,ngthw->ngchw", u, z).flatten(1, 2)


class Downsampler(nn.Module):
    """CARAFE++ at half the size."""

    def __init__(self, channels: int, *, k: int = 3) -> None:
        super().__init__()
        self.k = k
        self.compress = nn.Conv2d(channels, 6, 1)
        self.encode = nn.Conv2d(6, k * k, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.softmax(self.encode(self.compress(x)), 1)
        return torch.einsum("ncthw,nthw->nchw", window(x, self.k, 2), z)


class Involution(nn.Module):
    """Involution: kernels shared by the channels of a group, from the pixel itself."""

    def __init__(self, channels: int, *, k: int = 7, group_channels: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.k, self.stride, self.groups = k, stride, channels // group_channels
        self.reduce = nn.Sequential(nn.Conv2d(channels, channels // 2, 1, bias=False), nn.BatchNorm2d(channels // 2), nn.ReLU())
        self.span = nn.Conv2d(channels // 2, k * k * self.groups, 1)
        if stride > 1:
            self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
        self.unfold = nn.Unfold(k, padding=k // 2, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.span(self.reduce(self.pool(x) if self.stride > 1 else x))
        n, _, h, w = kernels.shape
        u = self.unfold(x).view(n, self.groups, -1, self.k**2, h, w)
        return (u * kernels.view(n, self.groups, 1, self.k**2, h, w)).sum(3).view(n, -1, h, w)


class PoolingBranch(nn.Module):
    """[TMFNet] Eq. 3."""

    def __init__(self, channels: int, out: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.linear = nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out), nn.LeakyReLU(0.01))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def mean(t: Tensor) -> Tensor:
            return F.avg_pool2d(t, self.k, 1, self.k // 2, count_include_pad=False)

        return mean(self.linear(x) * mask) / (mean(mask) + 1e-6)


class TrimapPooling(nn.Module):
    """Four branches and the map itself."""

    def __init__(self, channels: int, out: int, windows: tuple[int, ...] = (7, 5, 3, 1)) -> None:
        super().__init__()
        self.windows = windows
        self.linear = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out), nn.LeakyReLU(0.01)) for _ in windows
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        pooled = []
        for k, linear in zip(self.windows, self.linear, strict=True):
            mean = nn.AvgPool2d(k, 1, k // 2, count_include_pad=False)
            pooled.append(mean(linear(x) * mask) / (mean(mask) + 1e-6))
        return torch.cat([x, *pooled], 1)


class Fusion(nn.Module):
    """[TMFNet] Eqs. 4 to 7."""

    def __init__(self, high: int, low: int, inter: int, out: int, context: int, *, group_channels: int = 4) -> None:
        super().__init__()
        self.groups = inter // group_channels
        self.joint = nn.Conv2d(high // 4 + low, inter, 1)
        self.here = nn.Conv2d(inter, inter // 4, 1)
        self.everywhere = nn.Conv2d(context, inter // 4, 1)
        self.act = nn.LeakyReLU(0.01)
        self.kernels = nn.Conv2d(inter // 4, 9 * self.groups, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(inter, out, 1), nn.BatchNorm2d(out), nn.LeakyReLU(0.01))

    def forward(self, low: Tensor, high: Tensor, context: Tensor) -> Tensor:
        x = self.joint(torch.cat([F.pixel_shuffle(high, 2), low], 1))
        kernels = self.kernels(self.act(self.here(x) + self.everywhere(F.adaptive_avg_pool2d(context, 1))))
        u = window(x, 3).unflatten(1, (self.groups, -1))
        return self.last((u * kernels.unflatten(1, (self.groups, 1, 9))).sum(3).flatten(1, 2))


class Network(nn.Module):
    """An encoder-decoder of these: index block, indexed pooling and upsampling, involution, CARAFE, context and fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.index = Depthwise(8, family="m2o", width=2)
        self.middle = nn.Sequential(Involution(8, k=3), nn.BatchNorm2d(8), nn.ReLU())
        self.down = Downsampler(8)
        self.context = TrimapPooling(8, 4)
        self.merge = nn.Conv2d(24, 8, 3, padding=1)
        self.fuse = Fusion(8, 8, 8, 8, 8)
        self.up = CARAFEPack(8, 2, up_kernel=3)
        self.head = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        encoder, decoder = self.index(y)
        pooled = 4 * F.avg_pool2d(encoder * y, 2)
        middle = self.middle(pooled)
        small = self.down(middle)
        mask = F.interpolate(x[:, 3:], size=small.shape[2:], mode="bilinear").abs()
        context = self.merge(self.context(small, mask))
        fused = self.fuse(middle, context, context)
        return self.head(self.up(fused) + decoder * F.interpolate(pooled, scale_factor=2))


def unit(channels: int, out: int, kernel: int, *, padding: int | None = None, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(channels, out, kernel, padding=padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU6()]


class Block(nn.Module):
    """Inverted residual of [IndexNet]'s encoder, under the keys of the released weights: pads its input, not its hidden map."""

    def __init__(self, channels: int, out: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        first = unit(channels, hidden, 1) if expansion > 1 else []
        self.conv = nn.Sequential(*first, *unit(hidden, hidden, 3, padding=0, groups=hidden), *unit(hidden, out, 1)[:2])
        self.residual = channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x, (1, 1, 1, 1)))
        return x + y if self.residual else y


class PublishedIndexNet(nn.Module):
    """IndexNet Matting (m2o, nonlinear, context, no ASPP) from the paper, under the keys of the released weights."""

    STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    REDUCED = (0, 2, 3, 4, 6)

    def __init__(self, width: float, *, sharpness: float = 1.0) -> None:
        super().__init__()
        channels = [int(32 * width)]
        self.layer0 = nn.Sequential(*unit(4, channels[0], 3))
        for i, (expansion, base, blocks) in enumerate(self.STAGES, 1):
            out = int(base * width)
            stage = [Block(channels[-1] if b == 0 else out, out, expansion) for b in range(blocks)]
            setattr(self, f"layer{i}", nn.Sequential(*stage))
            channels.append(out)
        for i in self.REDUCED:
            setattr(self, f"index{i}", Depthwise(channels[i], family="m2o"))
        self.dconv_pp = nn.Sequential(*unit(channels[7], channels[6], 1))
        for i in range(7):
            layer = nn.Module()
            layer.dconv = nn.Sequential(*unit(2 * channels[i], channels[max(i - 1, 0)], 5))
            setattr(self, f"decoder_layer{i}", layer)
        self.pred = nn.Sequential(nn.Sequential(*unit(channels[0], 1, 5)), nn.Conv2d(1, 1, 5, padding=2, bias=False))
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        decoders: dict[int, Tensor] = {}
        for i in range(8):
            x = getattr(self, f"layer{i}")(x)
            skips.append(x)
            if i in self.REDUCED:
                encoder, decoders[i] = getattr(self, f"index{i}")(x)
                skips[i] = encoder * x
                x = self.sharpness * 4 * F.avg_pool2d(skips[i], 2)
        x = self.dconv_pp(x)
        for i in reversed(range(7)):
            if i in decoders:
                x = decoders[i] * F.interpolate(x, scale_factor=2, mode="nearest")
            x = getattr(self, f"decoder_layer{i}").dconv(torch.cat([x, skips[i]], 1))
        return self.pred(x)
