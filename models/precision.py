"""What an accelerator may do to the arithmetic of float32, and what judging lets it do: nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import backends

# Each takes float32 products in fewer bits (TF32, bfloat16) if its `fp32_precision` says so.
CUDNN: Any = backends.cudnn
ONEDNN: Any = backends.mkldnn
PRODUCTS = (backends.cuda.matmul, ONEDNN.matmul)
CONVOLUTIONS = (CUDNN.conv, CUDNN.rnn)
OTHERS = (ONEDNN.conv, ONEDNN.rnn)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it float32 is float32 on every device, and two runs agree; what was set before returns after.

    PyTorch lets cuDNN convolve in TF32, 10 bits of mantissa, unless it is told otherwise: logits are then off
    by a thousandth, more than many margins, and an image that a certificate proves may seem broken.
    """
    choices = (backends.cudnn.deterministic, backends.cudnn.benchmark)
    undo = [_products(), _convolutions(), _each(OTHERS)]
    backends.cudnn.deterministic, backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        backends.cudnn.deterministic, backends.cudnn.benchmark = choices
        for back in undo:
            back()


def _products() -> Callable[[], None]:
    """Takes products exactly; returns what undoes it. By the flag's older name, where that can be read.

    PyTorch refuses to read the older one after the newer were set alone, and a network may want to.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        return _each(PRODUCTS)
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def _convolutions() -> Callable[[], None]:
    """As `_products`, of cuDNN's convolutions and recurrent layers."""
    try:
        before = backends.cudnn.allow_tf32
    except RuntimeError:
        return _each(CONVOLUTIONS)
    backends.cudnn.allow_tf32 = False

    def back() -> None:
        backends.cudnn.allow_tf32 = before

    return back


def _each(engines: tuple[Any, ...]) -> Callable[[], None]:
    kept = [engine.fp32_precision for engine in engines]
    for engine in engines:
        engine.fp32_precision = "ieee"

    def back() -> None:
        for engine, precision in zip(engines, kept, strict=True):
            engine.fp32_precision = precision

    return back
