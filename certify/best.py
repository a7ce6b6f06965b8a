"""The best of several bounds, cheapest first: later ones see only what is still open."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import certify
from certify.base import CERTIFIERS, Certifier, Decision, proves, register_certifier
from models.base import Batch, Classifier
from models.cost import Cost
from models.discover import import_modules
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threat import NORMS, ThreatModel, per_sample


@dataclass
class Known:
    """What the steps so far say of n samples: bounds, counterexamples, and which step decided each."""

    lower: Tensor
    witness: Tensor
    found: Tensor
    settled_by: list[str]

    def take(self, rows: Tensor, decision: Decision) -> None:
        """Keeps the larger bound of each column, and what counterexamples are proposed."""
        self.lower[rows] = torch.maximum(self.lower[rows], decision.lower.detach().double())
        if decision.witness is not None and decision.found is not None:
            found = per_sample(decision.found, self.witness)
            self.witness[rows] = torch.where(found, decision.witness.to(self.witness), self.witness[rows])
            self.found[rows] |= decision.found


@register_certifier("best")
@dataclass(frozen=True, kw_only=True)
class Best(Certifier):
    """Runs `steps` in turn, each on the samples that all before it left open, and keeps the largest bounds.

    A sample is certified where any step certifies it at this certificate's tolerance; `settled_by` of the
    result names that step, or "open". `steps` holds registry names, which take their defaults, or
    certificates; one that lacks the threat's norm takes no part, and one that does not apply to the network
    is left out with a warning. alpha-crown starts from intermediate bounds that intersect polytope and crown.
    Raises UserError for no steps, an unknown name, itself, a statistical certificate, or steps without a
    norm; NotApplicable, naming the reasons, where no step applies.
    Source: the waterfall of Wong & Kolter 2018, 1711.00851, and Xu et al. 2021, 2011.13824, as one bound.
    """

    paper = "Xu et al. 2021, 2011.13824"
    cost = Cost.EXPENSIVE
    wide_cost = Cost.EXTREME

    steps: tuple[str | Certifier, ...] = ("ibp", "lipschitz", "polytope", "crown", "alpha-crown")

    def __post_init__(self) -> None:
        names = (self.steps,) if isinstance(self.steps, str | Certifier) else tuple(self.steps)
        import_modules(certify.__name__)
        parts = tuple(
            CERTIFIERS[part]() if isinstance(part, str) else part for part in names if part != "best"
        )
        if len(parts) < len(names) or any(isinstance(part, Best) for part in parts):
            raise UserError("best cannot be a step of best: name the steps themselves")
        if not parts:
            raise UserError("best needs at least one step, like steps = ('ibp', 'crown')")
        for part in parts:
            if part.confidence < 1:
                raise UserError(
                    f"'{part.name}' is statistical and no step of best, which proves: run it alone"
                )
        norms = tuple(norm for norm in NORMS if any(norm in part.norms for part in parts))
        for name, value in {"steps": names, "parts": parts, "norms": norms}.items():
            object.__setattr__(self, name, value)

    def parameters(self) -> dict[str, Any]:
        return {
            "steps": {
                f"{place}": {"name": part.name, **part.parameters()} for place, part in enumerate(self._parts)
            }
        }

    @property
    def _parts(self) -> tuple[Certifier, ...]:
        parts: tuple[Certifier, ...] = vars(self)["parts"]
        return parts

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        return self.decide(model, batch, threat, randomness).lower

    def decide(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Decision:
        with torch.no_grad():
            logits = model.logits(batch.x)
        known = Known(
            torch.full_like(logits, -torch.inf, dtype=torch.float64), batch.x.clone(),
            torch.zeros_like(batch.y, dtype=torch.bool), ["open"] * len(batch),
        )  # fmt: skip
        known.lower.scatter_(1, batch.y[:, None], torch.inf)
        open_, refusals = torch.arange(len(batch), device=batch.x.device), []
        parts = [part for part in self._parts if threat.norm in part.norms]
        for part in parts:
            if not len(open_):
                break
            try:
                known.take(open_, part.answer(model, batch[open_], threat, randomness))
            except NotApplicable as refusal:
                refusals.append(f"{part.name}: {refusal}")
                warnings.warn(f"best leaves out {refusals[-1]}", stacklevel=2)
                continue
            done = proves(known.lower[open_], logits[open_], self.tolerance) | known.found[open_]
            for i in open_[done].tolist():
                known.settled_by[i] = part.name
            open_ = open_[~done]
        if len(refusals) == len(parts):
            raise NotApplicable(f"no step of best applies to '{model.name}': {'; '.join(refusals)}")
        complete = any(type(part).decide is not Certifier.decide for part in parts)
        return Decision(
            known.lower, known.witness if complete else None, known.found if complete else None,
            tuple(known.settled_by),
        )  # fmt: skip
