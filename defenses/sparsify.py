"""Sparsity as a front end: of an image's coefficients in an orthonormal basis only the largest are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pywt
import torch
from torch import Tensor, nn

from defenses.inputs import Clamped, InputDefense, StraightThrough, register_input_defense
from models.architecture import Architecture
from models.errors import UserError

DCT = "dct"


def cosine_basis(n: int) -> Tensor:
    """The orthonormal DCT-II of n samples as a matrix (n, n) in float64, one basis vector a row."""
    place, frequency = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)[:, None]
    rows = torch.cos(math.pi / n * (place + 0.5) * frequency) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def wavelet_step(n: int, basis: str) -> Tensor:
    """One level of an orthogonal wavelet on n samples, n even, continued periodically: (n, n) in float64.

    The first n / 2 rows are the low band. Source: Mallat 1989, section III.
    """
    wavelet = pywt.Wavelet(basis)
    rows = torch.zeros(n, n, dtype=torch.float64)
    for band, filter_ in enumerate((wavelet.rec_lo, wavelet.rec_hi)):
        for shift in range(n // 2):
            for tap, weight in enumerate(filter_):
                rows[band * (n // 2) + shift, (2 * shift + tap) % n] += weight
    return rows


class Sparsified(nn.Module):
    """The orthogonal projection of images (n, c, h, w) on their `kept` coefficients of largest modulus.

    Colour images are counted as one: `kept` of c h w. The wavelet transform halves the low band as often as
    its height and width are even. Values may leave [0, 1]. Gradients pass through the kept coefficients.
    """

    def __init__(self, shape: tuple[int, int, int], keep: float, basis: str) -> None:
        super().__init__()
        entries = math.prod(shape)
        self.kept = max(1, round(keep * entries))
        self.whole = self.kept == entries
        self.levels = 0
        height, width = shape[1:]
        if basis == DCT:
            self._add(cosine_basis(height), cosine_basis(width))
        while basis != DCT and height % 2 == 0 and width % 2 == 0:
            self._add(wavelet_step(height, basis), wavelet_step(width, basis))
            height, width = height // 2, width // 2

    def _add(self, down: Tensor, across: Tensor) -> None:
        self.register_buffer(f"down_{self.levels}", down.float(), persistent=False)
        self.register_buffer(f"across_{self.levels}", across.float(), persistent=False)
        self.levels += 1

    def coefficients(self, x: Tensor) -> Tensor:
        """The orthonormal transform of images, the lowest band first: as x."""
        for level in range(self.levels):
            down, across = getattr(self, f"down_{level}"), getattr(self, f"across_{level}")
            height, width = len(down), len(across)
            low = down @ x[..., :height, :width] @ across.T
            x = _placed(low, x)
        return x

    def images(self, coefficients: Tensor) -> Tensor:
        """The inverse of `coefficients`: its transpose."""
        for level in reversed(range(self.levels)):
            down, across = getattr(self, f"down_{level}"), getattr(self, f"across_{level}")
            height, width = len(down), len(across)
            low = down.T @ coefficients[..., :height, :width] @ across
            coefficients = _placed(low, coefficients)
        return coefficients

    def forward(self, x: Tensor) -> Tensor:
        if self.whole:
            return x
        found = self.coefficients(x)
        flat = found.flatten(1)
        largest = flat.detach().abs().topk(self.kept, dim=1).indices
        kept = torch.zeros_like(flat).scatter(1, largest, 1.0)
        return self.images((flat * kept).reshape(found.shape))


def _placed(low: Tensor, whole: Tensor) -> Tensor:
    """`whole` (n, c, h, w) with its first rows and columns replaced by `low`."""
    height, width = low.shape[-2:]
    top = torch.cat([low, whole[..., :height, width:]], -1)
    return torch.cat([top, whole[..., height:, :]], -2)


@register_input_defense("sparsify")
@dataclass(frozen=True, kw_only=True)
class Sparsify(InputDefense):
    """Keeps the largest `keep` of an image's coefficients in an orthonormal basis, and drops the others.

    x' = clamp(B^T H_K(B x)), K = keep c h w: of a small perturbation only what falls on the K kept
    coefficients reaches the network, a share of about K / N. basis is an orthogonal wavelet of PyWavelets
    (haar, db5, sym4, ...), continued periodically, or dct. Adversaries follow the gradient through the kept
    coefficients, and past the clamp. Raises UserError for keep outside (0, 1] or another basis.
    Source: Gopalakrishnan, Marzi, Madhow, Pedarsani 2018, 1810.10625.
    """

    paper = "Gopalakrishnan, Marzi, Madhow, Pedarsani 2018, 1810.10625"

    keep: float = 0.03
    basis: str = "db5"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise UserError(f"sparsify needs keep between 0 and 1, not {self.keep:g}")
        orthogonal = self.basis in pywt.wavelist(kind="discrete") and pywt.Wavelet(self.basis).orthogonal
        if self.basis != DCT and not orthogonal:
            raise UserError(f"sparsify has no basis '{self.basis}': take dct, haar, db5, sym4 or coif1")

    def front(self, architecture: Architecture) -> nn.Module:
        channels, height, width = architecture.input_shape
        return nn.Sequential(Sparsified((channels, height, width), self.keep, self.basis), Clamped())

    def surrogate(self, front: nn.Module) -> nn.Module:
        assert isinstance(front, nn.Sequential)
        return nn.Sequential(front[0], StraightThrough(front[1]))

    def refuses(self, architecture: Architecture) -> str | None:
        return None if len(architecture.input_shape) == 3 else "its inputs are no images"
