"""Branch and bound on the parameters of a transformation: rotations, translations, brightness, contrast."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certify.base import Certifier, Decision, check_seconds, needed_margin, register_certifier
from certify.graph import Graph
from certify.prepare import prepare
from certify.stages import others, staged_margins
from models.base import Batch, Classifier, margin
from models.cost import Cost
from models.enclosure import Enclosure
from models.errors import UserError
from models.norms import LIGHTS, POSES
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from models.transformation import Transformation

BATCH = 32


class _Clipped(nn.Module):
    """The network behind the box that a transformation clips to."""

    def __init__(self, network: nn.Module, box: Box) -> None:
        super().__init__()
        self.network, self.box = network, box

    def forward(self, x: Tensor) -> Tensor:
        """The logits at the nearest point of the box."""
        logits: Tensor = self.network(x.clamp(self.box.lower, self.box.upper))
        return logits


@dataclass
class _Cells:
    """Boxes of moves that are still open: low, high (m, parameters), and lower bounds (m, classes)."""

    low: Tensor
    high: Tensor
    lower: Tensor

    @staticmethod
    def whole(limits: Tensor, classes: int) -> _Cells:
        """Every legal move in one box, of which nothing is known."""
        return _Cells(-limits[None], limits[None], limits.new_full((1, classes), -torch.inf))

    def __len__(self) -> int:
        return len(self.low)

    def rows(self, rows: Tensor) -> _Cells:
        """Some of the cells."""
        return _Cells(self.low[rows], self.high[rows], self.lower[rows])

    def with_cells(self, other: _Cells) -> _Cells:
        """Both lists."""
        return _Cells(*(
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("low", "high", "lower")
        ))  # fmt: skip

    def halves(self, effect: Tensor) -> _Cells:
        """Each cell cut in two across the parameter with the largest effect (m, parameters)."""
        width = self.high - self.low
        cut = torch.where(width > 0, effect + 1e-300, -1.0).argmax(1, keepdim=True)
        middle = ((self.low + self.high) / 2).gather(1, cut)
        left, right = self.high.scatter(1, cut, middle), self.low.scatter(1, cut, middle)
        return _Cells(
            torch.cat([self.low, right]), torch.cat([left, self.high]), torch.cat([self.lower, self.lower])
        )


@dataclass
class _Search:
    """One sample (n = 1) on its way: what is asked, the open cells, and what is known of the others."""

    model: Classifier
    graph: Graph
    sample: Batch
    threat: Transformation
    needed: float
    cells: _Cells
    proved: Tensor
    counterexample: Tensor | None = None

    def attack(self, moves: Tensor) -> None:
        """Keeps the move of least margin among (m, parameters), if the model errs there."""
        rows = torch.zeros(len(moves), dtype=torch.int64, device=moves.device)
        point = self.threat.carry_out(self.sample.x[rows], moves, self.sample.index[rows])
        with torch.no_grad():
            least = margin(self.model.logits(point), self.sample.y[rows])
        if bool((least < 0).any()):
            self.counterexample = moves[least.argmin()]

    def step(self, size: int) -> None:
        """Cuts the cells of least bound, tries their centres, and bounds the halves."""
        order = self._least_others(self.cells.lower).argsort(stable=True)
        taken, rest = self.cells.rows(order[:size]), self.cells.rows(order[size:])
        halves = taken.halves(self._enclosure(taken).effect)
        self.attack((halves.low + halves.high) / 2)
        if self.counterexample is not None:
            return
        lower = self._bound(self._enclosure(halves))
        halves.lower = torch.maximum(halves.lower, lower)
        safe = self._least_others(halves.lower) > self.needed
        self.proved = torch.minimum(self.proved, _least(halves.lower[safe], self.proved))
        self.cells = rest.with_cells(halves.rows(~safe))

    def _enclosure(self, cells: _Cells) -> Enclosure:
        x = self.sample.x.expand(len(cells), *self.sample.x.shape[1:])
        return self.threat.enclose(x, cells.low, cells.high)

    def _bound(self, enclosure: Enclosure) -> Tensor:
        """Lower bounds (m, classes) of the margins."""
        x, y = enclosure.centre, self.sample.y.expand(len(enclosure.centre))
        return staged_margins(self.graph, x, y, enclosure, self.needed)

    def _least_others(self, lower: Tensor) -> Tensor:
        return others(lower, self.sample.y.expand(len(lower)))

    @property
    def lower(self) -> Tensor:
        """What is proved (classes,) of all cells."""
        return torch.minimum(self.proved, _least(self.cells.lower, self.proved))


def _least(lower: Tensor, like: Tensor) -> Tensor:
    return lower.amin(0) if len(lower) else torch.full_like(like, torch.inf)


@register_certifier("parameter-split")
@dataclass(frozen=True, kw_only=True)
class ParameterSplit(Certifier):
    """Cuts a range of rotations or of brightness and contrast into cells until all are proved or one breaks.

    A cell's images lie in a linear image of its parameters with a small error of each pixel beside
    (models.enclosure), of which interval bounds, then crown and polytope bound the margins. Open cells of
    least bound are cut first, in two halves, across the parameter that moves the pixels most; every
    centre is tried as a counterexample, which the base class carries out and judges. What is certified
    is certified for every real parameter and for the operator in the inputs' own precision. A sample
    stays open after `seconds`, or with more than `cells` cells.
    Source: Balunovic, Baader, Singh, Gehr, Vechev 2019, NeurIPS (DeepG); Pei et al. 2017, 1712.01785.
    """

    paper = "Balunovic, Baader, Singh, Gehr, Vechev 2019, NeurIPS"
    norms = (*POSES, *LIGHTS)
    cost = Cost.EXTREME
    searches = True

    seconds: float = 30.0
    cells: int = 20_000

    def __post_init__(self) -> None:
        check_seconds(self.seconds)
        if self.cells < 1:
            raise UserError(f"cells must be at least 1, not {self.cells}")

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        return self.decide(model, batch, threat, randomness).lower

    def decide(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Decision:
        assert isinstance(threat, Transformation)
        proved = model
        if threat.clips:
            proved = Classifier(
                _Clipped(model.network, model.box), num_classes=model.num_classes, box=model.box,
                name=model.name, stochastic=model.stochastic,
            )  # fmt: skip
        graph, x = prepare(proved, batch.x)
        with torch.no_grad():
            logits = graph.values(x)[-1]
        needed = needed_margin(logits, self.tolerance)
        lower, steps = torch.zeros_like(logits), []
        move = torch.zeros(len(batch), threat.parameters(x), dtype=torch.float64, device=x.device)
        found = torch.zeros_like(batch.y, dtype=torch.bool)
        limits = threat.limits().to(x.device)
        for i in range(len(batch)):
            search = _Search(
                model, graph, batch[i : i + 1], threat, float(needed[i]),
                _Cells.whole(limits, logits.shape[1]), torch.full_like(lower[i], torch.inf),
            )  # fmt: skip
            steps.append(self._run(search, limits))
            lower[i] = search.lower
            if search.counterexample is not None:
                found[i], move[i], lower[i] = True, search.counterexample, -torch.inf
        return Decision(lower, move, found, tuple(steps))

    def _run(self, search: _Search, limits: Tensor) -> str:
        """Settles one sample as far as time and cells allow; returns what decided."""
        deadline, spent = time.monotonic() + self.seconds, 0
        ends = torch.cartesian_prod(*(torch.unique(torch.stack([-one, 0 * one, one])) for one in limits))
        search.attack(ends.reshape(-1, len(limits)))
        while search.counterexample is None and len(search.cells):
            size = min(BATCH, self.cells - spent)
            # A cell of one point that is not proved never will be.
            point = (search.cells.low == search.cells.high).all(1).any()
            if size <= 0 or time.monotonic() > deadline or (spent and bool(point)):
                return "open"
            spent += min(size, len(search.cells))
            search.step(size)
        return "search" if search.counterexample is not None else "cells"
