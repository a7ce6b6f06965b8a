"""The linear program's optimum by a batched first-order ascent of its dual, without a solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.base import Certifier, register_certifier
from certify.folded import folded_network
from certify.folding import undecided_counts, undecided_neurons
from certify.ibp import margin_rows
from certify.lp import over_nodes, triangles
from certify.prepare import prepare
from certify.relaxation import Relaxation
from certify.stacked import Stack, climbed_slopes
from certify.witness import recheck
from models.base import Batch, Classifier
from models.cost import Cost
from models.halving import in_pieces
from models.randomness import Randomness
from models.threat import ThreatModel

# The stacked networks of one ascent, in bytes: near the cache, and far below any memory limit.
MEMORY = 256 * 2**20


def chunks(sizes: list[int], d: int, classes: int) -> list[slice]:
    """Consecutive samples of `sizes` undecided neurons and d inputs that fit in MEMORY once stacked."""
    found, start, widest = [], 0, 0
    for i, size in enumerate(sizes):
        widest = max(widest, size, 1)
        cells = (i + 1 - start) * (widest + 8 * classes) * (widest + d)
        if 4 * cells > MEMORY and i > start:
            found.append(slice(start, i))
            start, widest = i, max(size, 1)
    return [*found, slice(start, len(sizes))] if sizes else []


def climbed_margins(
    relaxation: Relaxation, y: Tensor, classes: int, *, rounds: int, goal: float, stop: float
) -> Tensor:
    """Lower bounds (n, classes) on the margins after the ascent: what its slopes prove in float64.

    The ascent runs in single precision on the folded networks; its slopes alone are taken, and the network's
    own backward pass says what they are worth.
    """
    others = (
        torch.arange(classes, device=y.device)
        .expand(len(y), -1)[torch.arange(classes, device=y.device) != y[:, None]]
        .reshape(len(y), classes - 1)
    )
    rows = margin_rows(y, classes, relaxation.x.dtype).gather(1, others[..., None].expand(-1, -1, classes))
    samples, starts, groups = [], [], []
    for i in range(len(y)):
        sample = relaxation.select(slice(i, i + 1))
        groups.append([group for group in undecided_neurons(sample) if len(group.places)])
        samples.append(
            folded_network(sample, list(rows[i].unsqueeze(1)), list(rows.new_zeros(classes - 1, 1)))
        )
        first = [sample.alpha[group.node].flatten()[group.places] for group in groups[i]]
        starts.append(torch.cat([rows.new_zeros(0), *first]))
    stack = Stack.of(samples, torch.float32)
    start = torch.zeros_like(stack.target_neurons)
    for i, place in enumerate(stack.places):
        start[i][:, place] = starts[i].to(start)
    found = climbed_slopes(stack, start, rounds=rounds, goal=goal, stop=stop).to(rows)
    single = [{j: part[i : i + 1] for j, part in relaxation.alpha.items()} for i in range(len(y))]
    alpha = [over_nodes(single[i], groups[i], found[i][:, stack.places[i]]) for i in range(len(y))]
    joined = {j: torch.cat([part[j] for part in alpha]) for j in relaxation.alpha}
    proved = recheck(relaxation, rows, joined)
    return rows.new_zeros(len(y), classes).scatter(1, others, proved)


@register_certifier("lp-fast")
@dataclass(frozen=True, kw_only=True)
class FastLinearProgram(Certifier):
    """The optimum that `lp` solves for, within 1e-4, by a batched dual ascent; linf only.

    All classes of many samples climb at once, on networks with their stable neurons folded away: the
    lower slopes of every sample and class, with lp's intermediate bounds. Any slopes prove a bound, so
    that the result is valid at any number of `rounds`; a sample leaves once a feasible point of its program
    shows that each of its bounds is within `goal` of max(1, |optimum|). How a batch is stacked may move a
    bound by less than that. `only_open` lets samples leave that are proved. Samples with more than
    `neurons` undecided neurons keep the best of the interval, polytope and crown bounds.
    Source: Salman et al. 2019, 1902.08722, section 4; Wong & Kolter 2018, 1711.00851, equation 5.
    """

    paper = "Salman et al. 2019, 1902.08722"
    norms = ("linf",)
    cost = Cost.EXPENSIVE
    wide_cost = Cost.EXTREME

    rounds: int = 5
    goal: float = 1e-4
    only_open: bool = False
    neurons: int = 1000

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            relaxation, known = triangles(graph, x, threat, batch.y, self.neurons)
            sizes = undecided_counts(relaxation).tolist()
            wanted = [i for i in range(len(x)) if 0 < sizes[i] <= self.neurons]
            if self.only_open:
                known_open = (known <= 0).scatter(1, batch.y[:, None], False).any(1)
                wanted = [i for i in wanted if bool(known_open[i])]
            order = torch.tensor(sorted(wanted, key=sizes.__getitem__), dtype=torch.int64)
            better = known.clone()
            for chunk in chunks([sizes[i] for i in order.tolist()], x[0].numel(), known.shape[1]):
                better[order[chunk]] = self._climbed(relaxation, batch.y, known, order, chunk)
        return better

    def _climbed(
        self, relaxation: Relaxation, y: Tensor, known: Tensor, order: Tensor, chunk: slice
    ) -> Tensor:
        def climbed(part: slice) -> Tensor:
            chosen = order[chunk][part]
            proved = climbed_margins(
                relaxation.select(chosen), y[chosen], known.shape[1], rounds=self.rounds, goal=self.goal,
                stop=0.0 if self.only_open else torch.inf,
            )  # fmt: skip
            return torch.maximum(known[chosen], proved)

        count = chunk.stop - chunk.start
        return torch.cat(in_pieces(climbed, count, count))
