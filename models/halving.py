"""Work on many samples in batches that halve themselves where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from models.errors import UserError

# What torch says on a CPU; on a GPU it raises a class of its own.
FULL = ("not enough memory", "can't allocate memory", "out of memory")

# So many times as many samples fill an accelerator as are fastest on a CPU, whose caches are small.
WIDER = 4

T = TypeVar("T")


class NoRoom(UserError, MemoryError):
    """One sample alone does not fit; whoever works on more at once may still have fewer."""


def fitted_size(device: torch.device, size: int) -> int:
    """How many samples to begin with on `device`, of which `size` are fast on a CPU."""
    return size if device.type == "cpu" else WIDER * size


def in_pieces(work: Callable[[slice], T], count: int, size: int) -> list[T]:
    """work on samples 0 .. count - 1, at most `size` at a time; half as many from where memory runs out on.

    Raises NoRoom where one sample alone does not fit.
    """
    found: list[T] = []
    start = 0
    while start < count:
        stop = min(start + size, count)
        piece, reason = _fitting(work, slice(start, stop))
        if piece:
            found += piece
            start = stop
        elif stop - start > 1:
            size = (stop - start) // 2
        else:
            raise NoRoom(f"memory ran out on one sample ({reason}): free some, or take a smaller network")
    return found


def _fitting(work: Callable[[slice], T], samples: slice) -> tuple[list[T], str]:
    """What `work` gives for `samples`; where memory ran out nothing, and why, with nothing held any more."""
    try:
        return [work(samples)], ""
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(part in str(error).lower() for part in FULL):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [], reason
