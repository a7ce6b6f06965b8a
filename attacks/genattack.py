"""GenAttack: a small population of perturbed inputs, bred by what scores say of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.losses import clearly_wrong
from attacks.simba import doubt
from attacks.targets import LEAST_LIKELY, NONE, check_target, targets
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

ENTRIES = 20_000_000
"""Members are asked about in groups of at most so many numbers, which bounds the memory."""
FIRST_RATE, FIRST_REACH, DECAY = 0.5, 0.4, 0.9


def chosen(weights: Tensor, draws: Tensor) -> Tensor:
    """Places (k, m) drawn in proportion to `weights` (k, n) by uniform `draws` (k, m)."""
    rising = weights.cumsum(1)
    place = torch.searchsorted(rising, draws.to(rising) * rising[:, -1:], right=True)
    return place.clamp(max=weights.shape[1] - 1)


@dataclass
class Population:
    """The members (k, n, ...) of k samples, their fitness (k, n), and what adapts to how it rises.

    stale (k,): generations since the fittest one has improved; plateaus (k,): how often that was too many.
    """

    rows: Tensor
    members: Tensor
    fitness: Tensor
    stale: Tensor
    plateaus: Tensor

    @staticmethod
    def first(batch: Batch, size: int, threat: ThreatModel, randomness: Randomness) -> Population:
        """Uniform draws from the ball."""
        keys = (batch.index[:, None] * size + torch.arange(size, device=batch.x.device)).flatten()
        members = threat.sample(batch.x.repeat_interleave(size, 0), keys, randomness)
        none = torch.zeros_like(batch.y)
        members = members.unflatten(0, (len(batch), size))
        unknown = torch.full(members.shape[:2], -torch.inf, dtype=torch.float64, device=batch.x.device)
        return Population(torch.arange(len(batch), device=batch.x.device), members, unknown, none, none)

    def elite(self) -> Tensor:
        """The fittest member of each sample (k, ...)."""
        return self.members[torch.arange(len(self.rows), device=self.rows.device), self.fitness.argmax(1)]

    def children(self, batch: Batch, threat: ThreatModel, search: GenAttack, stream: Randomness) -> Tensor:
        """The next generation (k, n, ...), the fittest of this one in front."""
        count, index = self.members.shape[1] - 1, batch.index[self.rows]
        weights = (self.fitness / search.temperature).softmax(1)
        mates = chosen(weights, stream.child("parents").uniform(index, (2 * count,))).unflatten(1, (2, count))
        here = torch.arange(len(index), device=index.device)[:, None]
        one, other = (self.members[here, mate] for mate in mates.unbind(1))
        first, second = (weights.gather(1, mate) for mate in mates.unbind(1))
        draws = stream.child("crossover").uniform(index, one.shape[1:])
        child = torch.where(draws < _wide(first / (first + second), one), one, other)
        draws = stream.child("mutation").uniform(index, one.shape[1:]).to(child)
        shrunk = DECAY ** self.plateaus.double()[:, None]
        rate = _wide((FIRST_RATE * shrunk).clamp(min=search.rate), one)
        reach = _wide((FIRST_REACH * shrunk).clamp(min=search.reach), one) * threat.radius
        # Where draws are below the rate they are uniform below it.
        child = child + (draws < rate) * (2 * draws / rate - 1) * reach
        inside = threat.project(
            batch.x[self.rows].repeat_interleave(count, 0), child.flatten(0, 1).to(one.dtype)
        )
        return torch.cat([self.elite()[:, None], inside.reshape(one.shape)], 1)

    def replaced(self, members: Tensor, fitness: Tensor, patience: int) -> None:
        """Takes over the next generation, and counts those in which the fittest member has not improved."""
        better = fitness.amax(1) > self.fitness.amax(1)
        self.members, self.fitness = members, fitness
        self.stale = torch.where(better, 0, self.stale + 1)
        full = self.stale >= patience
        self.plateaus, self.stale = self.plateaus + full, torch.where(full, 0, self.stale)

    def keep(self, mask: Tensor) -> None:
        """Forgets the samples outside `mask` (k,)."""
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


def _wide(values: Tensor, members: Tensor) -> Tensor:
    """Numbers (k, n) or (k, 1) in the shape that broadcasts over `members` (k, n, ...), in their dtype."""
    return values.reshape(*values.shape, *[1] * (members.dim() - 2)).to(members)


@register_attack("genattack")
@dataclass(frozen=True, kw_only=True)
class GenAttack(Attack):
    """Breeds a few perturbed inputs by crossover and mutation, the fitter the likelier, from scores alone.

    Of each generation the fittest member stays and the others give way to children: parents are drawn by
    softmax(fitness / temperature), each entry comes from the first with probability p_1 / (p_1 + p_2), is
    moved with probability rho by U(-alpha eps, alpha eps), and is put back into ball and box. rho =
    max(`rate`, 0.5 0.9^k) and alpha = max(`reach`, 0.4 0.9^k), k the number of times that `patience`
    generations went by without a rise. The fitness is ln((1 - p_y) / p_y); with a `target` ("least-likely",
    for one more query, or a class number) ln(p_t / (1 - p_t)), the paper's, and a sample leaves when it is
    classified as that, though success is judged as misclassification all the same. The fittest member is
    known and not asked about again; the last generation is cut off at `queries`. `square` reaches farther.
    Source: Alzantot, Sharma, Chakraborty, Zhang, Hsieh, Srivastava 2019, 1805.11090, algorithm 1.
    """

    paper = "Alzantot et al. 2019, 1805.11090"
    norms = ("linf",)
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    population: int = 6
    temperature: float = 0.3
    rate: float = 0.1
    reach: float = 0.15
    patience: int = 100
    target: str = NONE

    def __post_init__(self) -> None:
        check_target(self.target, self.name, NONE, LEAST_LIKELY)
        if self.population < 2 or min(self.queries, self.patience) < 1:
            raise UserError("genattack needs population >= 2, queries >= 1 and patience >= 1")
        if self.temperature <= 0 or not 0 < self.rate <= 1 or not 0 < self.reach <= 1:
            raise UserError("genattack needs a temperature > 0, and a rate and a reach in (0, 1]")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, aim = batch.x.clone(), targets(model, batch, self.target)
        left = self.queries - (self.target == LEAST_LIKELY)
        herd = Population.first(batch, self.population, threat, randomness.child("first"))
        members, known, generation = herd.members, 0, 0
        while left and len(herd.rows):
            if known:
                generation += 1
                members = herd.children(batch, threat, self, randomness.child("generation", generation))
            members = members[:, : known + left]
            left -= members.shape[1] - known
            fitness, won = self._ask(model, batch, aim, herd.rows, members[:, known:])
            if known:
                fitness = torch.cat([herd.fitness.amax(1, keepdim=True), fitness], 1)
                won = torch.cat([torch.zeros_like(won[:, :1]), won], 1)
            herd.replaced(members, fitness, self.patience)
            broken = won.any(1)
            best[herd.rows] = herd.elite()
            first = members[torch.arange(len(won), device=won.device), won.long().argmax(1)]
            best[herd.rows[broken]] = first[broken]
            herd.keep(~broken)
            known = 1
        return best

    def _ask(
        self, model: ScoreAccess, batch: Batch, aim: Tensor | None, rows: Tensor, members: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fitness and success of members (k, m, ...) of the samples `rows` (k,): two tensors (k, m)."""
        asked, values, wins = rows.repeat_interleave(members.shape[1]), [], []
        group = max(ENTRIES // members[0, 0].numel(), 1)
        for some, points in zip(asked.split(group), members.flatten(0, 1).split(group), strict=True):
            logits = model.logits(points, some)
            won = clearly_wrong(logits, batch.y[some])
            if aim is None:
                value = doubt(logits, batch.y[some])
            else:
                value, won = -doubt(logits, aim[some]), won & (logits.argmax(1) == aim[some])
            values.append(value.double())
            wins.append(won)
        return torch.cat(values).reshape(members.shape[:2]), torch.cat(wins).reshape(members.shape[:2])
