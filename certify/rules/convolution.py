"""Convolutions with zero padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.linear import ROUNDING, Read
from certify.rules.operation import Affine, Single, folded
from certify.rules.shape import as_planes
from certify.rules.table import Call, Step, pair, rule


@dataclass(frozen=True)
class Conv2d(Affine):
    """Cross-correlation with zero padding; weight (out, in / groups, h, w), bias (out,) or None."""

    weight: Read
    bias: Callable[[], Tensor | None]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, *values: Tensor) -> Tensor:
        return self._convolve(values[0], self.weight(), self.bias())

    def interval(self, *inputs: Interval) -> Interval:
        weight = self.weight()
        centre = self._convolve(inputs[0].centre, weight, self.bias())
        return Interval.around(centre, self._convolve(inputs[0].radius, weight.abs()))

    def gain(self, gain: Tensor, norm: str) -> Tensor | None:
        weight = self.weight()
        if norm == "l2":
            return self._convolve(gain.square(), weight.square()).sqrt()
        total = self._convolve(gain, weight.abs())
        if norm == "l1":
            return total
        # A row's largest entry is at most the kernel's largest one times the largest gain.
        most = weight.abs().flatten(1).amax(1) * gain.amax()
        return torch.minimum(total, most[:, None, None].expand_as(total))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """For linf the largest l1 norm of an output channel's kernel; for l2 the norm of a circulant.

        Strides are unfolded into channels. The convolution is then part of a circular one on a torus
        large enough not to wrap, whose norm is the largest over its frequencies (Sedghi, Gupta, Long
        2019, 1805.10408): an upper bound, where the reshaped kernel's norm is none.
        """
        weight = self.weight()
        if norm == "linf":
            return constants[0] * weight.abs().flatten(1).sum(1).amax()
        blocks = [_polyphase(part, self.stride, self.dilation) for part in weight.chunk(self.groups)]
        size = [
            (length + 2 * pad) // stride + blocks[0].shape[2 + axis]
            for axis, (length, pad, stride) in enumerate(
                zip(shapes[0][-2:], self.padding, self.stride, strict=True)
            )
        ]
        spectra = [torch.fft.fft2(block, size).permute(2, 3, 0, 1) for block in blocks]
        largest = torch.stack([torch.linalg.matrix_norm(spectrum, 2).amax() for spectrum in spectra])
        return constants[0] * ROUNDING * largest.amax()

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        weight = self.weight()
        missing = [
            size - ((out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
            for size, out, stride, pad, dilation, kernel in zip(
                shapes[0][-2:],
                rows.shape[-2:],
                self.stride,
                self.padding,
                self.dilation,
                weight.shape[-2:],
                strict=True,
            )
        ]
        back = F.conv_transpose2d(
            folded(rows), weight, None, self.stride, self.padding, missing, self.groups, self.dilation
        )
        return (back.unflatten(0, rows.shape[:2]),)

    def constant(self, rows: Tensor) -> Tensor | float:
        bias = self.bias()
        return 0.0 if bias is None else rows.sum((-2, -1)) @ bias

    def single(self, places: Tensor, shape: torch.Size, source: torch.Size) -> Single | None:
        weight, bias = self.weight(), self.bias()
        channel = places // (shape[1] * shape[2])
        position = (places // shape[2] % shape[1], places % shape[2])
        seen, inside = [], []
        for axis in range(2):
            reach = self.dilation[axis] * torch.arange(weight.shape[2 + axis], device=places.device)
            place = (position[axis] * self.stride[axis] - self.padding[axis]).unsqueeze(2) + reach
            inside.append((place >= 0) & (place < source[1 + axis]))
            seen.append(place.clamp(0, source[1 + axis] - 1))
        plane = channel // (shape[0] // self.groups) * weight.shape[1]
        planes = plane.unsqueeze(2) + torch.arange(weight.shape[1], device=places.device)
        where = (planes[..., None, None] * source[1] + seen[0][:, :, None, :, None]) * source[2]
        where = where + seen[1][:, :, None, None]
        kernel = weight[channel] * (inside[0].unsqueeze(3) & inside[1].unsqueeze(2)).unsqueeze(2)
        rows = weight.new_zeros(*places.shape, source.numel()).scatter_add(
            2, where.flatten(2), kernel.flatten(2)
        )
        return Single(rows.unflatten(2, source), 0.0 if bias is None else bias[channel])


def _polyphase(weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The kernel of the same map with stride 1, after each stride x stride block became channels."""
    out, channels, height, width = weight.shape
    spaced = weight.new_zeros(out, channels, (height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1)
    spaced[:, :, :: dilation[0], :: dilation[1]] = weight
    missing = [-size % step for size, step in zip(spaced.shape[2:], stride, strict=True)]
    padded = F.pad(spaced, (0, missing[1], 0, missing[0]))
    split = padded.unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


@rule(nn.Conv1d)
def conv1d(call: Call) -> Step:
    """nn.Conv1d with zero padding: a convolution over planes of height 1."""
    module = call.module
    assert isinstance(module, nn.Conv1d)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        call.refuse("padding other than zeros by a number is not understood: give the padding as a number")
    (stride,), (padding,), (dilation,) = module.stride, module.padding, module.dilation
    flat = Conv2d(
        lambda: module.weight.unsqueeze(2), lambda: module.bias,
        (1, stride), (0, padding), (1, dilation), module.groups,
    )  # fmt: skip
    return as_planes(flat), (call.value(call.bind("input")["input"]),)


@rule(nn.Conv2d, F.conv2d)
def conv2d(call: Call) -> Step:
    """nn.Conv2d and F.conv2d with zero padding and constant weights."""
    if isinstance(call.module, nn.Conv2d):
        module = call.module
        if module.padding_mode != "zeros":
            call.refuse(f"padding mode '{module.padding_mode}' is not understood: use zeros")
        given = {**call.bind("input"), "padding": module.padding, "groups": module.groups}
        given |= {"stride": module.stride, "dilation": module.dilation}
        weight, bias = (lambda: module.weight), (lambda: module.bias)
    else:
        given = call.bind("input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
        weight, bias = call.constant(given["weight"]), call.constant(given["bias"])
    padding = given["padding"]
    if isinstance(padding, str):
        padding = _padding(call, padding, tuple(weight().shape[-2:]), pair(given["dilation"]))
    operation = Conv2d(
        weight, bias, pair(given["stride"]), pair(padding), pair(given["dilation"]), int(given["groups"])
    )
    return operation, (call.value(given["input"]),)


def _padding(call: Call, name: str, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int]:
    total = [d * (k - 1) if name == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if any(size % 2 for size in total):
        call.refuse("padding 'same' with an even kernel is not symmetric: give the padding as a number")
    return total[0] // 2, total[1] // 2
