"""Patches: every place of the window is a box of its own, with few inputs that move."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.base import Certifier, Decision, check_seconds, needed_margin, register_certifier
from certify.exact import Exact, accepted
from certify.few import Few
from certify.graph import Graph
from certify.prepare import prepare
from certify.stages import first_margins, line_margins, others
from models.base import Batch, Classifier, margin
from models.cost import Cost
from models.errors import NotApplicable
from models.pixels import FreePixels
from models.randomness import Randomness
from models.region import Region
from models.threat import ThreatModel

# Boxes that are bounded at once: so many numbers each, times the network's width, stay near the cache.
ENTRIES = 2**21
# So many windows are bounded first, to learn what one costs; a piece takes no more than this part of what is
# left, and is no more than so many times larger than the last.
FIRST = 4
PIECES = 4
# Classes whose gradients tell the corners that are tried in every window.
RIVALS = 3


@dataclass
class _Search:
    """One sample (n = 1) on its way: its windows, masks of what moves (p, *shape), and what is known of each.

    lower (p, classes) bounds the margins window by window; witness (1, ...) is a point that fools.
    """

    model: Classifier
    graph: Graph
    sample: Batch
    x: Tensor
    threat: ThreatModel
    needed: float
    windows: Tensor
    lower: Tensor = field(init=False)
    witness: Tensor | None = None

    def __post_init__(self) -> None:
        classes = self.graph.num_classes(self.x)
        self.lower = self.x.new_full((len(self.windows), classes), -torch.inf)

    @property
    def at_once(self) -> int:
        """How many windows fit into memory together."""
        return max(1, ENTRIES // max(shape.numel() for shape in self.graph.shapes(self.x)))

    def region(self, places: Tensor) -> Region:
        """The boxes of these windows: the whole range where they are, x elsewhere."""
        free, box = self.windows[places], self.threat.box
        low, high = (torch.where(free, end, self.x) for end in (box.lower, box.upper))
        return Region(low=low, high=high, box=box)

    @property
    def open(self) -> Tensor:
        """The windows of which nothing is proved, the least sure one first."""
        least = others(self.lower, self.sample.y.expand(len(self.lower)))
        order = least.argsort(stable=True)
        return order[least[order] <= self.needed]

    def attack(self) -> None:
        """Tries the corner of every window that the clean gradient of each near class points to."""
        x = self.x.clone().requires_grad_(True)
        with torch.enable_grad():
            gaps = margin_to_others(self.graph.values(x)[-1], self.sample.y)[0]
            nearest = gaps.detach().topk(min(RIVALS, len(gaps) - 1), largest=False).indices
            slopes = [torch.autograd.grad(gaps[j], x, retain_graph=True)[0] for j in nearest.tolist()]
        for slope in slopes:
            corner = torch.where(slope > 0, self.threat.box.lower, self.threat.box.upper)
            for places in torch.arange(len(self.windows), device=x.device).split(self.at_once):
                points = torch.where(self.windows[places], corner, self.x).to(self.sample.x)
                with torch.no_grad():
                    least = margin(self.model.logits(points), self.sample.y.expand(len(points)))
                if bool((least < 0).any()):
                    self.witness = points[least.argmin()][None]
                    return

    def bound(self, deadline: float) -> None:
        """Bounds every window by intervals, then the open ones by lines, in pieces that the time allows."""
        for places in torch.arange(len(self.windows), device=self.x.device).split(self.at_once):
            region = self.region(places)
            y = self.sample.y.expand(len(places))
            self.lower[places] = first_margins(self.graph, region.centre, y, region)
        left, size, started = self.open, FIRST, time.monotonic()
        while len(left) and started < deadline:
            places, left = left[:size], left[size:]
            region, y = self.region(places), self.sample.y.expand(len(places))
            known = self.lower[places]
            self.lower[places] = line_margins(self.graph, region.centre, y, region, known)
            now = time.monotonic()
            affordable = size * (deadline - now) / (PIECES * max(now - started, 1e-9))
            size, started = int(max(1, min(affordable, PIECES * size, self.at_once))), now

    def settle(self, deadline: float, randomness: Randomness) -> None:
        """Asks for the exact answer of the open windows, the least sure one first."""
        accept, label = accepted(self.model, self.sample, self.threat), int(self.sample.y)
        for place in self.open.tolist():
            left = deadline - time.monotonic()
            if left <= 0 or self.witness is not None:
                return
            region = self.region(torch.tensor([place]))
            _, case = Exact(seconds=left).one(
                self.graph, region.centre, label, self.lower[place], region, self.needed, accept,
                randomness.child(place),
            )  # fmt: skip
            self.witness = case.witness


def margin_to_others(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - z_j (n, classes), infinite in column y."""
    return (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], torch.inf)


def windows_of(threat: ThreatModel, shape: torch.Size) -> Tensor:
    """What moves at once, as masks (p, *shape): every window of a patch, or every single pixel or entry.

    Raises NotApplicable where more than one pixel or entry may move anywhere.
    """
    few = Few.of(threat, shape)
    if few is not None and few.count > 1:
        what = "entries" if few.norm == "l0" else "pixels"
        raise NotApplicable(f"{few.count} {what} anywhere are too many choices for window-split: take crown")
    if few is not None and few.norm == "l0" and few.count:
        return torch.eye(shape.numel(), dtype=torch.bool).reshape(-1, *shape)
    height, width = (shape[1], shape[2]) if len(shape) == 3 else (1, shape.numel())
    size = (few.count, few.count) if few is not None else (0, 0)
    if isinstance(threat, FreePixels) and threat.norm == "patch":
        size = threat.window(height, width)
    if not all(size):
        return torch.zeros(1, *shape, dtype=torch.bool)
    masks = torch.zeros(height - size[0] + 1, width - size[1] + 1, height, width, dtype=torch.bool)
    for top, left in torch.cartesian_prod(*(torch.arange(count) for count in masks.shape[:2])).tolist():
        masks[top, left, top : top + size[0], left : left + size[1]] = True
    pixels = masks.flatten(0, 1)
    return pixels[:, None].expand(-1, *shape) if len(shape) == 3 else pixels.reshape(-1, *shape)


@register_certifier("window-split")
@dataclass(frozen=True, kw_only=True)
class WindowSplit(Certifier):
    """Proves every place of a patch by itself, or finds one that breaks; single pixels and entries too.

    All windows are boxes in which few inputs move: interval bounds, then crown and polytope bound the margins
    of many at once, and what stays open gets the exact answer window by window, the least sure one first,
    until one breaks or `seconds` are up. Before that the corners that clean gradients point to are tried in
    every window. Smaller patches lie in these windows. For "mask" and l0 it takes one pixel or entry:
    of more there are too many choices, which `crown` bounds at once.
    Source: Chiang et al. 2020, 2003.06693, section 4 (interval bounds of every window).
    """

    paper = "Chiang et al. 2020, 2003.06693"
    norms = ("patch", "mask", "l0")
    cost = Cost.EXTREME
    searches = True
    tolerance = Exact.tolerance

    seconds: float = 30.0

    def __post_init__(self) -> None:
        check_seconds(self.seconds)

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        return self.decide(model, batch, threat, randomness).lower

    def decide(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Decision:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            logits = graph.values(x)[-1]
        needed = needed_margin(logits, self.tolerance)
        windows = windows_of(threat, x.shape[1:]).to(x.device)
        found, witness = margin(logits, batch.y) < 0, batch.x.clone()
        lower = torch.full_like(logits, -torch.inf)
        for i in (~found).nonzero()[:, 0].tolist():
            one, deadline = slice(i, i + 1), time.monotonic() + self.seconds
            search = _Search(model, graph, batch[one], x[one], threat, float(needed[i]), windows)
            search.attack()
            if search.witness is None:
                search.bound(deadline)
                search.settle(deadline, randomness.child(int(batch.index[i])))
            lower[i] = search.lower.amin(0)
            if search.witness is not None:
                found[i], witness[i] = True, search.witness[0].to(witness)
        return Decision(lower, witness, found)
