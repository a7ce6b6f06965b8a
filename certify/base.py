"""The contract of a certificate: lower bounds on every margin; the base class decides what is certified."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from models.base import Batch, Classifier, check_inputs, check_logits, frozen
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.registry import Registry
from models.threat import ThreatModel

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Certificate:
    """Proved lower bounds for n samples.

    lower (n, classes) float64 bounds z_y - z_j from below over the whole threat set, +inf in
    the label's own column and -inf where nothing is known; certified (n,) means that every
    other column is above TOLERANCE (relative to the logits' size); confidence is 1 for a proof
    and the stated probability for a statistical certificate.
    """

    lower: Tensor
    certified: Tensor
    confidence: float = 1.0

    @property
    def margin(self) -> Tensor:
        """The smallest lower bound over the other classes: shape (n,)."""
        return self.lower.amin(1)


@dataclass(frozen=True, kw_only=True)
class Certifier(ABC):
    """Frozen hyper-parameters and one method to write, `bound`.

    norms: those it can bound. cost: what one image costs; wide_cost: the same on networks of more
    than models.cost.WIDE neurons, where it differs. confidence is 1 for a proof.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    cost: ClassVar[Cost] = Cost.CHEAP
    wide_cost: ClassVar[Cost | None] = None
    confidence: ClassVar[float] = 1.0

    @abstractmethod
    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        """Lower bounds (n, classes) on z_y - z_j over {||x' - x|| <= eps} in the box; column y is ignored.

        Raises UserError (naming the operation) for a network it does not understand.
        """

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
        batch_size: int = 64,
    ) -> Certificate:
        """Bounds every margin of `batch` over `threat` and decides which samples are certified.

        Raises UserError for a norm the certificate lacks, a missing eps or bad inputs.
        """
        if threat.norm not in self.norms:
            known = ", ".join(self.norms)
            raise UserError(f"certificate '{self.name}' has no norm '{threat.norm}': it has {known}")
        if threat.eps is None:
            raise UserError(f"certificate '{self.name}' needs an eps")
        check_inputs(batch, model)
        pieces = []
        with frozen(model):
            for piece in batch.split(batch_size):
                with torch.no_grad():
                    logits = model.logits(piece.x)
                check_logits(logits, model.name)
                lower = self.bound(model, piece, threat, randomness).detach().double()
                pieces.append((lower, logits.double().abs().amax(1)))
        lower = torch.cat([piece[0] for piece in pieces])
        size = torch.cat([piece[1] for piece in pieces])
        if torch.isnan(lower).any():
            raise UserError(f"certificate '{self.name}' met NaN: check the weights of '{model.name}'")
        lower = lower.scatter(1, batch.y[:, None], torch.inf)
        certified = lower.amin(1) > TOLERANCE * size.clamp(min=1.0)
        return Certificate(lower, certified, self.confidence)


CERTIFIERS: Registry[type[Certifier]] = Registry("certificate")


def register_certifier(name: str) -> Callable[[type[Certifier]], type[Certifier]]:
    """Registers the decorated class (outermost decorator) under `name`."""

    def decorate(cls: type[Certifier]) -> type[Certifier]:
        cls.name = name
        return CERTIFIERS.add(name, cls)

    return decorate
