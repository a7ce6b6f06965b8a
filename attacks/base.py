"""The contract of an attack: a subclass only proposes, the base class judges.

No attack reports its own success. `run` asks the model for the clean predictions, lets the
subclass propose points for the samples that are still classified correctly, and decides in
float64 whether each point is a legal move and whether the model errs there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from attacks.access import Access, GradientAccess, LabelAccess, ScoreAccess
from attacks.adversarial_batch import AdversarialBatch, side_by_side
from models.base import Batch, Classifier, check_inputs, check_logits, frozen, margin
from models.cost import Cost
from models.errors import UserError
from models.halving import fitted_size, in_pieces
from models.randomness import Randomness
from models.registry import Registry
from models.threat import ThreatModel, check_reach, per_sample
from models.transformation import Transformation

ROUNDING = 1e-5
DRAWS = 15
# Samples that are attacked together on a CPU.
BATCH = 256
# Parameters that count something: an attack of fewer than none would look at no point and break nothing.
COUNTS = ("steps", "restarts", "rounds", "halvings", "patience", "bounds", "bound_steps", "targets", "passes")
VIEWS: dict[str, type[Access]] = {"gradients": GradientAccess, "scores": ScoreAccess, "labels": LabelAccess}


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Frozen hyper-parameters and one method to write, `propose`.

    norms: those it searches in. minimal: it looks for the smallest perturbation, and takes
    eps=None. access: "gradients", "scores" or "labels". fitted: it is fitted on images of its
    own (`aside`) before it attacks. models: fields that hold other classifiers. ensemble: such a field
    holds several at once. sweeps: values of hyper-parameters that a matrix runs one by one.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    minimal: ClassVar[bool] = False
    access: ClassVar[str] = "gradients"
    fitted: ClassVar[bool] = False
    cost: ClassVar[Cost] = Cost.CHEAP
    models: ClassVar[tuple[str, ...]] = ()
    ensemble: ClassVar[bool] = False
    sweeps: ClassVar[dict[str, tuple[str, ...]]] = {}

    @abstractmethod
    def propose(
        self, model: Any, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: Any
    ) -> Tensor:
        """Points x' (n, ...) for n correctly classified samples; the clean input where nothing was found.

        Under a Transformation, moves (n, parameters) instead, which the base class carries out itself.
        `model` is the view that `access` names; `randomness` draws per `batch.index`; `fitted` is
        what `fit` returned.
        """

    def fit(self, model: Any, aside: Batch, threat: ThreatModel, randomness: Randomness) -> Any:
        """What the attack learns on `aside`, images that are never scored; None for most attacks."""
        return None

    def artifacts(self, fitted: Any) -> dict[str, Tensor]:
        """What `fit` made that a user wants to keep."""
        return {}

    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters by name; classifiers give their names, inner attacks names and parameters."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    @final
    def run(
        self,
        model: Classifier,
        batch: Batch,
        threat: ThreatModel,
        randomness: Randomness,
        aside: Batch | None = None,
        *,
        batch_size: int | None = None,
        history: bool = False,
    ) -> AdversarialBatch:
        """Attacks every sample of `batch` within `threat` and judges the result; `history` keeps its losses.

        At most `batch_size` samples at a time, as many as are fast if None, fewer where memory runs out.
        Raises UserError for a norm the attack lacks, a missing eps or one beyond the box, inputs outside it,
        labels out of range, or a model that returns NaN or probabilities; NotApplicable for one without a
        gradient.
        """
        self._check(threat, aside)
        size = fitted_size(batch.x.device, BATCH) if batch_size is None else batch_size
        _check_work(model, batch, threat, size)
        with frozen(model):
            fitting = VIEWS[self.access](model, 0)
            fitted = self.fit(fitting, aside, threat, randomness.child("fit")) if aside is not None else None
            pieces = in_pieces(
                lambda part: self._attack(model, batch[part], threat, randomness, fitted, history),
                len(batch), size,
            )  # fmt: skip
        joined = {name: torch.cat([getattr(piece, name) for piece in pieces]) for name in _PER_SAMPLE}
        return AdversarialBatch(
            **joined,
            shared_forward=fitting.shared_forward + sum(piece.shared_forward for piece in pieces),
            shared_backward=fitting.shared_backward + sum(piece.shared_backward for piece in pieces),
            artifacts=self.artifacts(fitted),
            won_by=tuple(name for piece in pieces for name in piece.won_by),
            move=torch.cat([piece.move for piece in pieces if piece.move is not None])
            if isinstance(threat, Transformation)
            else None,
            history=side_by_side([piece.history for piece in pieces if piece.history is not None])
            if history
            else None,
        )

    def check_counts(self) -> None:
        """Raises UserError for a parameter that counts something and is below none, an inner attack's too."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Attack):
                value.check_counts()
            elif entry.name in COUNTS and value < 0:
                raise UserError(f"attack '{self.name}' has {entry.name} = {value}: give a number from 0 up")

    def _check(self, threat: ThreatModel, aside: Batch | None) -> None:
        self.check_counts()
        if threat.norm not in self.norms:
            raise UserError(
                f"attack '{self.name}' has no norm '{threat.norm}': it has {', '.join(self.norms)}"
            )
        if threat.eps is None and not self.minimal:
            raise UserError(f"attack '{self.name}' needs an eps: only minimal-norm attacks go without")
        if self.fitted and not (aside and len(aside)):
            raise UserError(f"attack '{self.name}' is fitted on images of its own: pass them as `aside`")

    def _attack(
        self,
        model: Classifier,
        batch: Batch,
        threat: ThreatModel,
        randomness: Randomness,
        fitted: Any,
        history: bool,
    ) -> AdversarialBatch:
        view = VIEWS[self.access](model, len(batch))
        logits, wrong = verdict(model, batch.x, batch.y)
        check_logits(logits, model.name)
        clean = ~wrong
        proposal = batch.x.clone()
        if isinstance(threat, Transformation):
            numbers = threat.parameters(batch.x)
            proposal = torch.zeros(len(batch), numbers, dtype=torch.float64, device=batch.x.device)
        if bool(clean.any()):
            inner = _Positions(view, clean.nonzero()[:, 0])
            if history:
                view.record(batch.y[clean])
            found = self.propose(inner.view, batch[clean], threat, randomness, fitted)
            proposal[clean] = found.detach().to(proposal)
            inner.restore(len(batch))
        result = judge(model, batch, proposal, threat, clean, view)
        return replace(result, history=view.history) if history else result


def _check_work(model: Classifier, batch: Batch, threat: ThreatModel, batch_size: int) -> None:
    if not len(batch) or batch_size < 1:
        raise UserError(f"{len(batch)} inputs in batches of {batch_size}: give at least one of each")
    check_inputs(batch, model, threat.box)
    check_reach(threat, batch.x)
    if threat.box.lower < model.box.lower or threat.box.upper > model.box.upper:
        raise UserError(
            f"the threat's box [{threat.box.lower:g}, {threat.box.upper:g}] reaches beyond the model's "
            f"[{model.box.lower:g}, {model.box.upper:g}]: write ThreatModel(norm, eps, model.box)"
        )


_PER_SAMPLE = (
    "x_adv",
    "success",
    "distance",
    "margin",
    "clean",
    "legal",
    "forward",
    "backward",
    "zero_gradient",
)


def _plain(value: Any) -> Any:
    if isinstance(value, Attack):
        return {"name": value.name, **value.parameters()}
    if isinstance(value, tuple) and all(isinstance(part, Classifier) for part in value):
        return " & ".join(part.name for part in value)
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    return value.name if isinstance(value, Classifier) else value


class _Positions:
    """Lets an attack on a subset count rows from 0, then books the counts on the whole batch."""

    def __init__(self, view: Access, positions: Tensor) -> None:
        self.view, self.positions = view, positions.cpu()
        n = len(positions)
        view.forward, view.backward, view.slope = (torch.zeros(n, dtype=torch.int64) for _ in range(3))
        view.stage = torch.full((n,), -1, dtype=torch.int64)

    def restore(self, n: int) -> None:
        self.view.moved(self.positions)
        for name, absent in (("forward", 0), ("backward", 0), ("slope", 0), ("stage", -1)):
            whole = torch.full((n,), absent, dtype=torch.int64)
            whole[self.positions] = getattr(self.view, name)
            setattr(self.view, name, whole)


def judge(
    model: Classifier, batch: Batch, proposal: Tensor, threat: ThreatModel, clean: Tensor, view: Access
) -> AdversarialBatch:
    """The verdict on proposals, points (n, ...) or moves (n, parameters), independent of who made them.

    A point that leaves ball or box by no more than rounding is moved inside and judged there; one that
    leaves by more is illegal, and counts as a failure at the clean input, as does a move out of range.
    """
    x, move = batch.x, None
    if isinstance(threat, Transformation):
        move, x_adv, away, legal = threat.settled(x, proposal, batch.index)
    else:
        x_adv, legal = legalised(x, proposal, threat)
        away = threat.distance(x, x_adv)
    logits, wrong = verdict(model, x_adv, batch.y)
    success = wrong | ~clean
    distance = torch.where(success, away, torch.nan)
    return AdversarialBatch(
        x_adv=x_adv,
        success=success,
        distance=torch.where(clean, distance, 0.0),
        margin=margin(logits.double(), batch.y),
        clean=clean,
        legal=legal,
        forward=view.forward,
        backward=view.backward,
        zero_gradient=view.slope == 1,
        shared_forward=view.shared_forward,
        shared_backward=view.shared_backward,
        won_by=tuple(name * won for name, won in zip(view.won_by(), (success & clean).tolist(), strict=True)),
        move=move,
    )


def legalised(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Proposals x_adv (n, ...) moved inside by no more than rounding, or x; which are legal (n,)."""
    finite = torch.isfinite(x_adv).flatten(1).all(1)
    x_adv = torch.where(per_sample(finite, x), x_adv, x)
    snapped = threat.project(x, x_adv)
    slack = ROUNDING * max(1.0, threat.box.width)
    near = threat.distance(x_adv, snapped) <= slack * (1 if threat.norm == "linf" else x[0].numel() ** 0.5)
    legal = finite & near & threat.contains(x, snapped)
    return torch.where(per_sample(legal, x), snapped, x), legal


def verdict(model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) at x and whether the model errs there (n,), by `Classifier.errs`.

    Of equal logits the first decides, as `argmax` has it. A random model is asked DRAWS times on randomness
    that no attack has seen: it errs where more than half of its answers do, and the logits are the mean ones.
    """
    with torch.no_grad():
        drawn = torch.stack([model.logits(x) for _ in range(DRAWS if model.stochastic else 1)])
    errs = torch.stack([model.errs(one, y) for one in drawn])
    return drawn.mean(0), errs.double().mean(0) > 0.5


ATTACKS: Registry[type[Attack]] = Registry("attack")


def register_attack(name: str) -> Callable[[type[Attack]], type[Attack]]:
    """Registers the decorated class (outermost decorator) under `name`."""

    def decorate(cls: type[Attack]) -> type[Attack]:
        cls.name = name
        return ATTACKS.add(name, cls)

    return decorate
