"""The contract of a certificate: lower bounds on every margin; the base class decides what is certified."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from models.base import Batch, Classifier, check_inputs, check_logits, frozen, margin
from models.cost import Cost
from models.errors import UserError
from models.halving import fitted_size, in_pieces
from models.randomness import Randomness
from models.registry import Registry
from models.threat import ThreatModel, per_sample
from models.transformation import Transformation

TOLERANCE = 1e-5

# Samples that are bounded together on a CPU.
BATCH = 64


@dataclass(frozen=True)
class Certificate:
    """Proved lower bounds for n samples.

    lower (n, classes) float64 bounds z_y - z_j from below over the whole threat set, +inf in
    the label's own column and -inf where nothing is known; certified (n,) means that every
    other column is above the certifier's tolerance (relative to the logits' size); confidence is 1
    for a proof and the stated probability for a statistical certificate. A complete method also says
    where there is none: broken (n,) where the model errs, witness (n, ...) such an input (the clean
    one elsewhere), distance (n,) how far it is in the threat's own measure, NaN elsewhere. settled_by (n,)
    names the step that decided each sample, where a method has several.
    """

    lower: Tensor
    certified: Tensor
    confidence: float = 1.0
    broken: Tensor | None = None
    witness: Tensor | None = None
    settled_by: tuple[str, ...] = ()
    distance: Tensor | None = None

    @property
    def margin(self) -> Tensor:
        """The smallest lower bound over the other classes: shape (n,)."""
        return self.lower.amin(1)


@dataclass(frozen=True)
class Decision:
    """What a certifier claims of n samples: lower (n, classes), and what else a complete method knows.

    witness (n, ...) proposes a counterexample wherever found (n,) is True; the base class judges it. Under
    a Transformation it holds moves (n, parameters), which the base class carries out itself.
    """

    lower: Tensor
    witness: Tensor | None = None
    found: Tensor | None = None
    settled_by: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Decision:
        """The same with its tensors on `device`."""
        witness, found = (None if part is None else part.to(device) for part in (self.witness, self.found))
        return Decision(self.lower.to(device), witness, found, self.settled_by)


@dataclass(frozen=True, kw_only=True)
class Certifier(ABC):
    """Frozen hyper-parameters and one method to write, `bound`; a complete method writes `decide` too.

    norms: those it can bound. tolerance: what a margin must exceed, relative to the logits' size.
    cost: what one image costs; wide_cost: the same on networks of more than models.cost.WIDE neurons,
    where it differs. per_class: it passes back once for each class, which takes long where there are many.
    confidence is 1 for a proof. searches: it branches, or asks a solver, in many small steps: on the CPU,
    wherever the model lies.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    cost: ClassVar[Cost] = Cost.CHEAP
    wide_cost: ClassVar[Cost | None] = None
    per_class: ClassVar[bool] = False
    confidence: ClassVar[float] = 1.0
    searches: ClassVar[bool] = False
    tolerance: ClassVar[float] = TOLERANCE

    @abstractmethod
    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        """Lower bounds (n, classes) on z_y - z_j over {||x' - x|| <= eps} in the box; column y is ignored.

        Raises UserError (naming the operation) for a network it does not understand.
        """

    def decide(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Decision:
        """The bounds, and counterexamples where the method looks for them."""
        return Decision(self.bound(model, batch, threat, randomness))

    @final
    def answer(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Decision:
        """What `decide` finds, computed where it is fastest, on the device of the inputs."""
        device = batch.x.device
        if not self.searches or device.type == "cpu":
            return self.decide(model, batch, threat, randomness)
        return self.decide(copy.deepcopy(model).cpu(), batch.to("cpu"), threat, randomness).to(device)

    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return asdict(self)

    @final
    def run(
        self,
        model: Classifier,
        batch: Batch,
        threat: ThreatModel,
        randomness: Randomness,
        *,
        batch_size: int | None = None,
    ) -> Certificate:
        """Bounds every margin of `batch` over `threat` and decides which samples are certified.

        At most `batch_size` samples at a time, as many as are fast if None, fewer where memory runs out.
        Raises UserError for a norm the certificate lacks, a missing eps or bad inputs.
        """
        if threat.norm not in self.norms:
            known = ", ".join(self.norms)
            raise UserError(f"certificate '{self.name}' has no norm '{threat.norm}': it has {known}")
        if threat.eps is None:
            raise UserError(f"certificate '{self.name}' needs an eps")
        check_inputs(batch, model, threat.box)
        size = fitted_size(batch.x.device, BATCH) if batch_size is None else batch_size
        with frozen(model):
            pieces = in_pieces(
                lambda part: self._piece(model, batch[part], threat, randomness), len(batch), size
            )
        return _joined(pieces, self.confidence)

    def _piece(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Certificate:
        with torch.no_grad():
            logits = model.logits(batch.x)
        check_logits(logits, model.name)
        decision = self.answer(model, batch, threat, randomness)
        lower = decision.lower.detach().double()
        if torch.isnan(lower).any():
            raise UserError(f"certificate '{self.name}' met NaN: check the weights of '{model.name}'")
        lower = lower.scatter(1, batch.y[:, None], torch.inf)
        certified = proves(lower, logits, self.tolerance)
        if decision.found is None or decision.witness is None:
            return Certificate(lower, certified, settled_by=decision.settled_by)
        witness, away, legal = _carried_out(decision.witness, decision.found, batch, threat)
        with torch.no_grad():
            errs = margin(model.logits(witness), batch.y) < 0
        broken = decision.found & errs & legal
        if bool((broken & certified).any()):
            raise UserError(
                f"certificate '{self.name}' contradicts itself on '{model.name}': it proves nothing"
            )
        away = torch.where(broken, away, torch.nan)
        return Certificate(lower, certified, 1.0, broken, witness, decision.settled_by, away)


def needed_margin(logits: Tensor, tolerance: float) -> Tensor:
    """A hair more than every margin must exceed at `tolerance`, for logits (n, classes): (n,)."""
    return tolerance * logits.abs().amax(1).clamp(min=1.0) * 1.001


def _carried_out(
    witness: Tensor, found: Tensor, batch: Batch, threat: ThreatModel
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposed points or moves as points (n, ...), clean ones elsewhere; their distances; which are legal."""
    if isinstance(threat, Transformation):
        move = torch.where(found[:, None], witness, 0.0)
        return threat.settled(batch.x, move, batch.index)[1:]
    point = torch.where(per_sample(found, batch.x), witness.to(batch.x), batch.x)
    return point, threat.distance(batch.x, point), threat.contains(batch.x, point)


def check_seconds(seconds: float) -> None:
    """Raises UserError for a time limit that leaves no time."""
    if not seconds > 0:
        raise UserError(f"a time limit of {seconds:g} s leaves no time: give a positive one")


def proves(lower: Tensor, logits: Tensor, tolerance: float) -> Tensor:
    """Whether bounds (n, classes), +inf in the label's column, certify: above tolerance max(1, max |z|)."""
    return lower.amin(1) > tolerance * logits.double().abs().amax(1).clamp(min=1.0)


def _joined(pieces: list[Certificate], confidence: float) -> Certificate:
    complete = bool(pieces) and all(piece.broken is not None for piece in pieces)

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(piece, name) for piece in pieces])

    return Certificate(
        whole("lower"),
        whole("certified"),
        confidence,
        whole("broken") if complete else None,
        whole("witness") if complete else None,
        tuple(step for piece in pieces for step in piece.settled_by),
        whole("distance") if complete else None,
    )


CERTIFIERS: Registry[type[Certifier]] = Registry("certificate")


def register_certifier(name: str) -> Callable[[type[Certifier]], type[Certifier]]:
    """Registers the decorated class (outermost decorator) under `name`."""

    def decorate(cls: type[Certifier]) -> type[Certifier]:
        cls.name = name
        return CERTIFIERS.add(name, cls)

    return decorate
