"""Work on many samples that halves itself where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# What torch says on a CPU; on a GPU it raises a class of its own.
FULL = ("not enough memory", "can't allocate memory", "out of memory")


def in_halves(work: Callable[[slice], Tensor], samples: slice) -> Tensor:
    """work(samples), joined from halves wherever the whole runs out of memory; one sample must fit."""
    try:
        return work(samples)
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError) or any(part in str(error).lower() for part in FULL)
        if not full or samples.stop - samples.start <= 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (samples.start + samples.stop) // 2
    parts = (slice(samples.start, middle), slice(middle, samples.stop))
    return torch.cat([in_halves(work, part) for part in parts])
