"""The contract of an attack: a subclass only proposes, the base class judges.

No attack reports its own success. `run` asks the model for the clean predictions, lets the
subclass propose points for the samples that are still classified correctly, and decides in
float64 whether each point is a legal move and whether the model errs there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from attacks.access import Access, GradientAccess, LabelAccess, ScoreAccess
from models.base import Batch, Classifier, check_inputs, check_logits, frozen, margin
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.registry import Registry
from models.threat import ThreatModel, per_sample

ROUNDING = 1e-5
DRAWS = 15
VIEWS: dict[str, type[Access]] = {"gradients": GradientAccess, "scores": ScoreAccess, "labels": LabelAccess}


@dataclass(frozen=True)
class AdversarialBatch:
    """What an attack achieved on n samples, as judged by the base class.

    x_adv (n, ...) is legal for every sample; success (n,) says where the model errs on it;
    distance (n,) float64 is its perturbation's norm, NaN where the attack failed and 0 where the
    clean input is already misclassified (clean (n,) is False there); margin (n,) float64 is
    z_y - max_{j != y} z_j at x_adv; legal (n,) is False where the proposal left ball or box;
    forward and backward (n,) count passes, shared_* those that no sample owns; artifacts are
    what the attack fitted (a universal perturbation). won_by names the stage that broke each
    sample, "" where none did or the attack is of one piece.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    margin: Tensor
    clean: Tensor
    legal: Tensor
    forward: Tensor
    backward: Tensor
    shared_forward: int = 0
    shared_backward: int = 0
    artifacts: dict[str, Tensor] = field(default_factory=dict)
    won_by: tuple[str, ...] = ()

    @property
    def wins(self) -> dict[str, int]:
        """How many samples each stage broke, the most first."""
        return dict(Counter(name for name in self.won_by if name).most_common())


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Frozen hyper-parameters and one method to write, `propose`.

    norms: those it searches in. minimal: it looks for the smallest perturbation, and takes
    eps=None. access: "gradients", "scores" or "labels". fitted: it is fitted on images of its
    own (`aside`) before it attacks. models: fields that hold other classifiers.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    minimal: ClassVar[bool] = False
    access: ClassVar[str] = "gradients"
    fitted: ClassVar[bool] = False
    cost: ClassVar[Cost] = Cost.CHEAP
    models: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def propose(
        self, model: Any, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: Any
    ) -> Tensor:
        """Points x' (n, ...) for n correctly classified samples; the clean input where nothing was found.

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
        batch_size: int = 256,
    ) -> AdversarialBatch:
        """Attacks every sample of `batch` within `threat` and judges the result.

        Raises UserError for a norm the attack lacks, a missing eps, inputs outside the box,
        labels out of range, or a model that returns NaN or probabilities.
        """
        self._check(threat, aside)
        check_inputs(batch, model)
        with frozen(model):
            fitting = VIEWS[self.access](model, 0)
            fitted = self.fit(fitting, aside, threat, randomness.child("fit")) if aside is not None else None
            pieces = [
                self._attack(model, piece, threat, randomness, fitted) for piece in batch.split(batch_size)
            ]
        joined = {name: torch.cat([getattr(piece, name) for piece in pieces]) for name in _PER_SAMPLE}
        return AdversarialBatch(
            **joined,
            shared_forward=fitting.shared_forward + sum(piece.shared_forward for piece in pieces),
            shared_backward=fitting.shared_backward + sum(piece.shared_backward for piece in pieces),
            artifacts=self.artifacts(fitted),
            won_by=tuple(name for piece in pieces for name in piece.won_by),
        )

    def _check(self, threat: ThreatModel, aside: Batch | None) -> None:
        if threat.norm not in self.norms:
            raise UserError(
                f"attack '{self.name}' has no norm '{threat.norm}': it has {', '.join(self.norms)}"
            )
        if threat.eps is None and not self.minimal:
            raise UserError(f"attack '{self.name}' needs an eps: only minimal-norm attacks go without")
        if self.fitted and aside is None:
            raise UserError(f"attack '{self.name}' is fitted on images of its own: pass them as `aside`")

    def _attack(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: Any
    ) -> AdversarialBatch:
        view = VIEWS[self.access](model, len(batch))
        logits, wrong = verdict(model, batch.x, batch.y)
        check_logits(logits, model.name)
        clean = ~wrong
        x_adv = batch.x.clone()
        if bool(clean.any()):
            inner = _Positions(view, clean.nonzero()[:, 0])
            x_adv[clean] = (
                self.propose(inner.view, batch[clean], threat, randomness, fitted).detach().to(x_adv)
            )
            inner.restore(len(batch))
        return judge(model, batch, x_adv, threat, clean, view)


_PER_SAMPLE = ("x_adv", "success", "distance", "margin", "clean", "legal", "forward", "backward")


def _plain(value: Any) -> Any:
    if isinstance(value, Attack):
        return {"name": value.name, **value.parameters()}
    return value.name if isinstance(value, Classifier) else value


class _Positions:
    """Lets an attack on a subset count rows from 0, then books the counts on the whole batch."""

    def __init__(self, view: Access, positions: Tensor) -> None:
        self.view, self.positions = view, positions.cpu()
        n = len(positions)
        view.forward, view.backward = (torch.zeros(n, dtype=torch.int64) for _ in range(2))
        view.stage = torch.full((n,), -1, dtype=torch.int64)

    def restore(self, n: int) -> None:
        for name, absent in (("forward", 0), ("backward", 0), ("stage", -1)):
            whole = torch.full((n,), absent, dtype=torch.int64)
            whole[self.positions] = getattr(self.view, name)
            setattr(self.view, name, whole)


def judge(
    model: Classifier, batch: Batch, x_adv: Tensor, threat: ThreatModel, clean: Tensor, view: Access
) -> AdversarialBatch:
    """The verdict on proposals x_adv (n, ...), independent of the attack that made them.

    A proposal that leaves ball or box by no more than rounding is moved inside and judged
    there; one that leaves by more is illegal, and counts as a failure at the clean input.
    """
    x = batch.x
    x_adv, legal = legalised(x, x_adv, threat)
    logits, wrong = verdict(model, x_adv, batch.y)
    success = wrong | ~clean
    distance = torch.where(success, threat.distance(x, x_adv), torch.nan)
    return AdversarialBatch(
        x_adv=x_adv,
        success=success,
        distance=torch.where(clean, distance, 0.0),
        margin=margin(logits.double(), batch.y),
        clean=clean,
        legal=legal,
        forward=view.forward,
        backward=view.backward,
        shared_forward=view.shared_forward,
        shared_backward=view.shared_backward,
        won_by=tuple(name * won for name, won in zip(view.won_by(), (success & clean).tolist(), strict=True)),
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
    """Logits (n, classes) at x and whether the model errs there (n,).

    A random model is asked DRAWS times on randomness that no attack has seen: it errs where more than
    half of its answers do, and the logits are the mean ones.
    """
    with torch.no_grad():
        drawn = torch.stack([model.logits(x) for _ in range(DRAWS if model.stochastic else 1)])
    return drawn.mean(0), (drawn.argmax(2) != y).double().mean(0) > 0.5


ATTACKS: Registry[type[Attack]] = Registry("attack")


def register_attack(name: str) -> Callable[[type[Attack]], type[Attack]]:
    """Registers the decorated class (outermost decorator) under `name`."""

    def decorate(cls: type[Attack]) -> type[Attack]:
        cls.name = name
        return ATTACKS.add(name, cls)

    return decorate
