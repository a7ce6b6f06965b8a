"""The worst case over several attacks: later ones see only what still holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import attacks
from attacks.access import Access, LabelAccess
from attacks.base import ATTACKS, VIEWS, Attack, legalised, register_attack
from models.base import Batch, margin
from models.cost import Cost
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.threat import NORMS, ThreatModel

WIDEST = tuple(VIEWS)


@dataclass
class Best:
    """What has been found so far for n samples: points, whether they fool, and how good they are.

    Less is better: `score` is the distance of a point that fools, else the margin there.
    """

    point: Tensor
    fooled: Tensor
    score: Tensor

    def offer(self, rows: Tensor, point: Tensor, fooled: Tensor, score: Tensor) -> Tensor:
        """Takes over what fools where nothing did, or scores less among equals; which it took (k,)."""
        before = self.fooled[rows]
        better = (fooled & ~before) | ((fooled == before) & (score < self.score[rows]))
        taken = rows[better]
        self.point[taken], self.fooled[taken], self.score[taken] = (
            point[better],
            fooled[better],
            score[better],
        )
        return better


@register_attack("cascade")
@dataclass(frozen=True, kw_only=True)
class Cascade(Attack):
    """Runs `attacks` in turn, each on the samples that all before it left standing.

    Per sample a point that fools beats one that does not; then the smaller distance counts (where no eps is
    given every attack sees every sample, and the nearest point of all is kept), else the smaller margin.
    `attacks` holds registry names, which take their defaults, or attacks. The access is the widest that any
    of them needs, and each still sees through its own view; its passes add up, and one forward pass a
    sample and stage goes to the check who is broken. `won_by` of the result names the stage that broke
    each sample. Raises UserError for no attacks, an unknown name, or attacks that no norm unites.
    Source: the worst case per sample of Croce, Hein 2020, 2003.01690, section 6.
    """

    paper = "Croce, Hein 2020, 2003.01690, section 6"
    norms = ("linf", "l2", "l1")
    cost = Cost.MEDIUM

    attacks: tuple[str | Attack, ...] = ("fgsm", "pgd", "deepfool")

    def __post_init__(self) -> None:
        names = (self.attacks,) if isinstance(self.attacks, str | Attack) else tuple(self.attacks)
        if not names:
            raise UserError("cascade needs at least one attack, like attacks = ('fgsm', 'pgd')")
        import_modules(attacks.__name__)
        stages = tuple(ATTACKS[part]() if isinstance(part, str) else part for part in names)
        norms = tuple(norm for norm in NORMS if all(norm in stage.norms for stage in stages))
        if not norms:
            wanted = "; ".join(f"{stage.name} has {', '.join(stage.norms)}" for stage in stages)
            raise UserError(f"the attacks of a cascade share no norm: {wanted}")
        derived = {
            "attacks": names,
            "stages": stages,
            "norms": norms,
            "access": min((stage.access for stage in stages), key=WIDEST.index),
            "minimal": all(stage.minimal for stage in stages),
            "fitted": any(stage.fitted for stage in stages),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def parameters(self) -> dict[str, Any]:
        return {
            "attacks": {
                f"{place}": {"name": stage.name, **stage.parameters()}
                for place, stage in enumerate(self._stages)
            }
        }

    @property
    def _stages(self) -> tuple[Attack, ...]:
        stages: tuple[Attack, ...] = vars(self)["stages"]
        return stages

    def fit(self, model: Access, aside: Batch, threat: ThreatModel, randomness: Randomness) -> list[Any]:
        found = []
        for place, stage in enumerate(self._stages):
            part = model.part(VIEWS[stage.access], 0)
            found.append(stage.fit(part, aside, threat, randomness.child("stage", place)))
            model.absorb(part, torch.zeros(0, dtype=torch.int64))
        return found

    def artifacts(self, fitted: list[Any] | None) -> dict[str, Tensor]:
        pairs = zip(self._stages, fitted or [None] * len(self._stages), strict=True)
        return {
            f"{place}.{stage.name}.{key}": tensor
            for place, (stage, part) in enumerate(pairs)
            for key, tensor in stage.artifacts(part).items()
        }

    def propose(
        self, model: Any, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: list[Any] | None
    ) -> Tensor:
        n, device = len(batch), batch.x.device
        nothing = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        best = Best(batch.x.clone(), torch.zeros(n, dtype=torch.bool, device=device), nothing)
        for place, stage in enumerate(self._stages):
            rows = (best.fooled.logical_not() | (threat.eps is None)).nonzero()[:, 0]
            if not len(rows):
                break
            part, mine = model.part(VIEWS[stage.access], len(rows), batch.y[rows]), batch[rows]
            stream = randomness.child("stage", place)
            point = stage.propose(part, mine, threat, stream, fitted[place] if fitted else None)
            model.absorb(part, rows)
            point, _ = legalised(mine.x, point.detach().to(mine.x), threat)
            fooled, margins = self._look(model, point, rows, mine.y)
            score = torch.where(fooled, threat.distance(mine.x, point), margins)
            taken = best.offer(rows, point, fooled, score)
            model.credit(rows[taken & fooled], stage.name)
        return best.point

    def _look(self, model: Any, point: Tensor, rows: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the model errs at `point` (k, ...), and its margins, 0 where only labels are given."""
        if isinstance(model, LabelAccess):
            return model.labels(point, rows) != y, torch.zeros(len(y), dtype=torch.float64, device=y.device)
        logits = model.logits(point, rows)
        margins = margin(logits.double(), y)
        return margins < 0, margins
