"""The attacks and certificates that judge one batch: by name, or the usual ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from attacks.base import ATTACKS, Attack
from certify.base import CERTIFIERS, Certifier
from certify.effort import backward_multiplications, margin_multiplications
from models.base import Batch, Classifier
from models.discover import import_modules
from models.errors import UserError
from models.naming import read_terms
from models.registry import Registry

for room in ("attacks", "certify"):
    import_modules(room)

ATTACK_ORDER = (
    "fgsm", "strongest", "sigma-zero", "sparse-rs", "rotation-translation", "flow", "lighting",
    "corruptions", "patch", "rp2",
)  # fmt: skip
CERTIFICATE_ORDER = (
    "ibp",
    "crown-ibp",
    "polytope",
    "crown",
    "alpha-crown",
    "parameter-split",
    "window-split",
)
EXAMPLES = {"attack": "pgd(steps=100)", "certificate": "exact(seconds=5)"}
# Multiplications an image: some six seconds of a core. `lenet` takes a sixth of it.
AFFORDABLE = 1e10
J = TypeVar("J", Attack, Certifier)


@dataclass(frozen=True)
class Judges:
    """Attacks and certificates in the order in which they run, by the names that rows give them.

    `chosen` certificates were asked for by name; the usual ones may be left out where they cost too much.
    """

    attacks: dict[str, Attack]
    certificates: dict[str, Certifier]
    chosen: bool = True

    @staticmethod
    def named(attacks: Sequence[str] | None, certificates: Sequence[str] | None, norm: str) -> Judges:
        """The judges of these names, "pgd" or "pgd(steps=100)"; None stands for the usual ones in this norm.

        Raises UserError for an unknown name or parameter, and for an attack that needs more than a batch.
        """
        return Judges(
            _named(attacks, ATTACK_ORDER, norm, ATTACKS, "attack"),
            _named(certificates, CERTIFICATE_ORDER, norm, CERTIFIERS, "certificate"),
            certificates is not None,
        )

    def affordable(self, model: Classifier, batch: Batch) -> tuple[Judges, list[str]]:
        """These without the usual certificates that would take minutes an image, and a line that says so."""
        if self.chosen:
            return self, []
        kept, lines = dict(self.certificates), []
        for effort in (margin_multiplications, backward_multiplications):
            names = [name for name in kept if _bounded_by(kept[name]) is effort]
            try:
                work = effort(model, batch) if names else 0.0
            except UserError:
                break  # each certificate says for itself why it cannot
            if work > AFFORDABLE:
                kept = {name: judge for name, judge in kept.items() if name not in names}
                kind, them = ("certificates", "them") if len(names) > 1 else ("certificate", "it")
                at = f"{work:.0e} multiplications an image"
                lines.append(f"{kind} {', '.join(names)} left out at {at}: name {them} to run")
        return replace(self, certificates=kept), lines


def _bounded_by(judge: Certifier) -> Callable[[Classifier, Batch], float] | None:
    """What tells the work of a usual certificate that may take minutes an image."""
    if judge.wide_cost is not None:
        return backward_multiplications
    return margin_multiplications if judge.per_class else None


def _named(
    wanted: Sequence[str] | None, order: Sequence[str], norm: str, registry: Registry[type[J]], kind: str
) -> dict[str, J]:
    if wanted is None:
        wanted = [name for name in order if norm in registry[name].norms]
    found: dict[str, J] = {}
    for text in _names(wanted, kind):
        terms = read_terms(text)
        cls: Any = registry[terms[0].name]
        if len(terms) > 1:
            raise UserError(f"'{text}': give each {kind} by itself")
        if issubclass(cls, Attack) and (cls.models or cls.fitted):
            needs = "other models" if cls.models else "images of its own"
            raise UserError(
                f"attack '{terms[0].name}' needs {needs}: python -m bench run --attack {terms[0].name}"
            )
        term = terms[0].settled(kind, cls().parameters())
        found[str(term)] = cls(**dict(term.chosen))
    return found


def _names(wanted: Any, kind: str) -> list[str]:
    names = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"an {kind} is a name like '{EXAMPLES[kind]}', not {name!r}")
    return names
