"""How many threads a search is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from certify.graph import Graph

# Up to this many entries in its widest value a network's steps are over before a second thread is awake.
SMALL = 512


@contextmanager
def fitting_threads(graph: Graph, x: Tensor) -> Iterator[None]:
    """One thread while a small network is searched, the caller's number afterwards.

    A search of small steps spends most of several threads' time on waiting for each other: on a machine
    that is not idle, several times what one takes alone.
    """
    before = torch.get_num_threads()
    small = max(shape.numel() for shape in graph.shapes(x)) <= SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
