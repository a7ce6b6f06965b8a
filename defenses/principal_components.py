"""MNIST's principal components: how they are fitted, and where the shipped ones lie.

`python -m defenses.principal_components FILE` fits them again from the images under RHOBUST_DATA.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.data import load_data, without

MOST = 100
FILE = Path(__file__).parent / "mnist_components.safetensors"
EXCLUDED = "mnist5k"


@dataclass(frozen=True)
class PrincipalComponents:
    """A mean (d,), orthonormal axes (k, d) by falling variance, and their variances (k,), all float64."""

    mean: Tensor
    axes: Tensor
    variances: Tensor

    def first(self, k: int) -> PrincipalComponents:
        """The same with only the first k axes."""
        return PrincipalComponents(self.mean, self.axes[:k], self.variances[:k])


def fit(images: Tensor, most: int) -> PrincipalComponents:
    """The first `most` principal components of images (n, ...), by the eigenvectors of their covariance.

    The sign of an axis is that which makes its entry of largest modulus positive.
    """
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    variances, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    axes = vectors.T.flip(0)[:most]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return PrincipalComponents(mean, axes * signs, variances.flip(0)[:most])


@lru_cache(maxsize=1)
def shipped() -> PrincipalComponents:
    """The shipped components, made orthonormal again after their rounding to float16."""
    found = load_file(FILE)
    rounded = found["axes"].double()
    axes = torch.linalg.qr(rounded.T).Q.T
    return PrincipalComponents(
        found["mean"].double(),
        axes * (axes * rounded).sum(1, keepdim=True).sign(),
        found["variances"].double(),
    )


def write(place: Path, root: Path | None) -> None:
    """Fits the components on MNIST's training images without the embedded ones; stores them in float16."""
    data = without(load_data("mnist-train", root, False), load_data(EXCLUDED))
    found = fit(data.batch(torch.arange(len(data))).x, MOST)
    tensors = {
        "mean": found.mean.half(),
        "axes": found.axes.half().contiguous(),
        "variances": found.variances.half(),
    }
    note = {
        "made_by": "python -m defenses.principal_components",
        "data": f"{data.name} without {EXCLUDED}: {len(data)} images in [0, 1]",
        "data_sha256": data.sha256,
    }
    save_file(tensors, place, note)


if __name__ == "__main__":
    folder = os.environ.get("RHOBUST_DATA")
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE, Path(folder) if folder else None)
