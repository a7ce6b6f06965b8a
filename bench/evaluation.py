"""One model and one batch in, the bracket out: the suite from Python, without a matrix or files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.base import ATTACKS, Attack
from bench.inputs import read_inputs
from bench.stats import wilson
from certify.base import CERTIFIERS, Certifier
from models.base import Batch, Classifier, frozen
from models.discover import import_modules
from models.eps import parse_eps
from models.errors import NotApplicable, UserError
from models.norms import BALLS, described
from models.randomness import Randomness
from models.registry import Registry
from models.threat import Box, ThreatModel
from models.threats import threat_named

for room in ("attacks", "certify"):
    import_modules(room)

ATTACK_ORDER = ("fgsm", "strongest", "rotation-translation", "corruptions", "patch", "rp2")
CERTIFICATE_ORDER = ("ibp", "polytope", "crown", "alpha-crown")


class Contradiction(UserError):
    """A certified sample that an attack breaks: one of the two is wrong, and no number can be trusted."""


@dataclass(frozen=True)
class Evaluation:
    """The bracket: robust accuracy at (norm, eps) on these n samples lies in [certified, attacked].

    clean, certified, attacked are fractions; outcomes has one row per sample and judge that looked
    at it (index, judge, kind, success, distance, lower, certified, zero_gradient, seconds); flags say what
    was left out.
    """

    name: str
    norm: str
    eps: float
    n: int
    clean: float
    certified: float
    attacked: float
    outcomes: pd.DataFrame
    flags: tuple[str, ...]

    @property
    def gap(self) -> float:
        """What nobody knows yet: attacked - certified."""
        return self.attacked - self.certified

    def summary(self) -> pd.DataFrame:
        """One row: clean, certified and attacked with their Wilson 95 % intervals, and the gap."""
        row: dict[str, object] = {
            "model": self.name,
            "threat": described(self.norm, self.eps),
            "n": self.n,
        }
        for column in ("clean", "certified", "attacked"):
            value = getattr(self, column)
            low, high = wilson(round(value * self.n), self.n)
            row[column] = f"{100 * value:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
        row["gap"] = f"{100 * self.gap:.1f} %"
        return pd.DataFrame([row])

    def __str__(self) -> str:
        return "\n".join([self.summary().to_string(index=False), *self.flags])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(flag)}</p>" for flag in self.flags)
        return str(self.summary().to_html(index=False)) + notes


def evaluate(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    norm: str = "linf",
    eps: str | float,
    attacks: Sequence[str] | None = None,
    certificates: Sequence[str] | None = None,
    box: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Evaluation:
    """Brackets the robust accuracy of `model` on labelled images (n, ...) in `box`.

    `model` is any nn.Module that maps a batch to logits and normalises inside itself. `norm` may name a
    threat that is no ball (models.norms), `eps` then its size. Attacks run cheapest first, each on the
    samples that still hold; certificates on those not yet certified.
    Raises UserError for bad inputs or unknown names, Contradiction where a proof and an attack clash.
    """
    threat = threat_named(norm, parse_eps(eps), Box(*box))
    if threat.eps is None:
        raise UserError("evaluate needs an eps: write it like 0.1 or 8/255")
    judged, batch = read_inputs(model, images, labels, threat.box)
    clean = _clean(judged, batch)
    broken, certified = ~clean, torch.zeros_like(clean)
    rows, flags = _start(norm)
    for name in _names(attacks, ATTACK_ORDER, norm, ATTACKS):
        found, notes = _attack(name, judged, batch[~broken], threat, Randomness(seed))
        broken[_indices(found, "success")] = True
        rows, flags = [*rows, found], [*flags, *notes]
    for name in _names(certificates, CERTIFICATE_ORDER, norm, CERTIFIERS):
        try:
            rows.append(_certify(name, judged, batch[clean & ~certified], threat, Randomness(seed)))
        except NotApplicable as reason:
            flags.append(f"certificate {name} left out: {reason}")
            continue
        certified[_indices(rows[-1], "certified")] = True
        broken[_indices(rows[-1], "success")] = True
    _check_agreement(certified, broken)
    return Evaluation(
        name=judged.name,
        norm=norm,
        eps=threat.eps,
        n=len(batch),
        clean=float(clean.double().mean()),
        certified=float(certified.double().mean()),
        attacked=float((~broken).double().mean()),
        outcomes=pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
        flags=tuple(flags),
    )


def _start(norm: str) -> tuple[list[pd.DataFrame], list[str]]:
    """No rows yet, and what is known of a threat beforehand."""
    return [], [] if norm in BALLS else [f"no certificate bounds '{norm}': the lower end is 0"]


def _check_agreement(certified: Tensor, broken: Tensor) -> None:
    """Raises Contradiction where a sample is both."""
    clash = (certified & broken).nonzero()[:, 0].tolist()
    if clash:
        raise Contradiction(f"samples {clash} are certified and broken: one judge is wrong, report this")


def _clean(model: Classifier, batch: Batch) -> Tensor:
    with frozen(model), torch.no_grad():
        return torch.cat([model.logits(part.x).argmax(1) == part.y for part in batch.split(256)])


def _names(
    wanted: Sequence[str] | None,
    order: Sequence[str],
    norm: str,
    registry: Registry[type[Attack]] | Registry[type[Certifier]],
) -> list[str]:
    if wanted is not None:
        return [name for name in wanted if registry[name]]
    return [name for name in order if norm in registry[name].norms]


def _attack(
    name: str, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of an attack, none where it does not apply, and what a user should know of them."""
    start = time.perf_counter()
    attack = ATTACKS[name]()
    if not len(batch):
        return _rows(name, "attack", batch, start), []
    try:
        result = attack.run(model, batch, threat, randomness)
    except NotApplicable as reason:
        return _rows(name, "attack", batch[:0], start), [f"attack {name} left out: {reason}"]
    columns = {"success": result.success, "distance": result.distance, "zero_gradient": result.zero_gradient}
    blind = int(result.zero_gradient.sum())
    line = f"attack {name} saw a zero gradient and nothing else on {blind} of {len(batch)} samples"
    return _rows(name, "attack", batch, start, **columns), [line] if blind else []


def _certify(
    name: str, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
) -> pd.DataFrame:
    start = time.perf_counter()
    if not len(batch):
        return _rows(name, "certificate", batch, start)
    result = CERTIFIERS[name]().run(model, batch, threat, randomness)
    rows = _rows(name, "certificate", batch, start, certified=result.certified, lower=result.margin)
    if result.broken is not None and result.witness is not None:
        rows["success"] = result.broken.cpu().numpy()
        away = threat.distance(batch.x, result.witness).cpu().numpy()
        rows["distance"] = np.where(rows["success"], away, np.nan)
    return rows.assign(settled_by=result.settled_by) if result.settled_by else rows


def _indices(frame: pd.DataFrame, column: str) -> Tensor:
    """The places of the samples for which a column holds."""
    return torch.from_numpy(frame.loc[frame[column].astype(bool), "index"].to_numpy(dtype="int64", copy=True))


def _rows(name: str, kind: str, batch: Batch, start: float, **columns: Tensor) -> pd.DataFrame:
    values = {key: value.cpu().numpy() for key, value in columns.items()}
    return pd.DataFrame(
        {
            "index": batch.index.cpu().numpy(),
            "judge": name,
            "kind": kind,
            "success": values.get("success", np.zeros(len(batch), dtype=bool)),
            "distance": values.get("distance", np.full(len(batch), np.nan)),
            "lower": values.get("lower", np.full(len(batch), np.nan)),
            "certified": values.get("certified", np.zeros(len(batch), dtype=bool)),
            "zero_gradient": values.get("zero_gradient", np.zeros(len(batch), dtype=bool)),
            "seconds": (time.perf_counter() - start) / max(len(batch), 1),
        }
    )
