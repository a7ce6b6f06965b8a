"""The relaxations of a batch: samples whose maxima channels share are asked about one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from certify.backward import Slope, relax
from certify.graph import Graph
from certify.lowering import has_maxima
from certify.relaxation import Relaxation
from certify.shared_maxima import with_shared_maxima
from models.threat import ThreatModel


def relaxations(
    graph: Graph, x: Tensor, threat: ThreatModel, *slopes: Slope
) -> Iterator[tuple[Tensor, Relaxation]]:
    """The places (k,) of some samples of x (n, ...) and their relaxation by `slopes`, until all had theirs.

    What is proved of a sample's last node is proved of the network's: see `with_shared_maxima`.
    """
    every, alone = torch.arange(len(x), device=x.device), []
    for i in range(len(x)) if has_maxima(graph) else ():
        one = slice(i, i + 1)
        question = with_shared_maxima(graph, x[one], threat.select(one))
        if question is not None:
            alone.append(i)
            yield every[one], relax(*question.parts, *slopes)
    if not alone:
        yield every, relax(graph, x, threat, *slopes)
    elif len(alone) < len(x):
        others = torch.ones(len(x), dtype=torch.bool, device=x.device)
        others[alone] = False
        yield every[others], relax(graph, x[others], threat.select(every[others]), *slopes)
