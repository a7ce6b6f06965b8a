"""`pt:PATH`: images and labels as PyTorch saves tensors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data import DATA_FILES, Dataset
from models.datasets.npz import named, of_arrays
from models.errors import UserError


def _pt(path: Path, size: int | None) -> Dataset:
    """The pair (images, labels), or tensors of those names as in npz:, in the same layouts."""
    if size is not None:
        raise UserError(f"pt:{path} has its size already: leave out @size={size}")
    how = "save the pair of tensors, torch.save((images, labels), FILE)"
    try:
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than tensors: {how}") from None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    pair = named(path, content) if isinstance(content, dict) else content
    if not (
        isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(one, Tensor) for one in pair)
    ):
        raise UserError(f"{path} holds no images and labels: {how}")
    images, labels = (one.float() if one.dtype == torch.bfloat16 else one for one in pair)
    return of_arrays("pt", path, images.numpy(), labels.numpy())


DATA_FILES.add("pt", _pt)
