"""The audit: what a model's robustness number is worth, rung by rung, and the worst case behind it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from html import escape

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.access import ScoreAccess
from attacks.base import AdversarialBatch, Attack, verdict
from attacks.fgsm import FGSM
from attacks.hopskipjump import HopSkipJump
from attacks.pgd import PGD
from attacks.square import Square
from attacks.square import search as random_search
from attacks.strongest import Strongest
from attacks.transfer import Transfer
from bench.inputs import read_inputs
from bench.stats import wilson
from models.base import Batch, Classifier, frozen, margin
from models.declared import as_declared
from models.eps import parse_eps
from models.errors import NotApplicable, UserError
from models.memory import MEMORY, asked, since
from models.norms import described
from models.probes import signs
from models.randomness import Randomness
from models.threat import Box, ThreatModel

NOISES = 10
QUERIES = 500
PROBE, PERSIST = 400, 5000
# What random search may gain on gradients, as a share of what these gained: honest networks show up to 2 %.
GAIN = 0.04
LABEL_QUERIES = 2000
# How much one judge may be ahead of another, as a share of the samples, before the other is distrusted.
AHEAD = 0.05
BEHIND = 0.1


@dataclass(frozen=True)
class Rung:
    """One question of the audit: whether the model or its attack passed, and the numbers behind it."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Audit:
    """What can be believed of robust accuracy at (norm, eps) on n samples.

    naive is what projected gradient descent leaves of the model, attacked what every attack together
    leaves, both as fractions; broken (n,) says which samples fell or were wrong. flags are the names of
    the rungs that failed. A model is unreliable where the worst case could not be run or some weaker judge
    still beats it, or where it remembers what it was asked.
    """

    name: str
    norm: str
    eps: float
    n: int
    clean: float
    naive: float
    attacked: float
    broken: np.ndarray
    rungs: tuple[Rung, ...]
    reliable: bool
    seconds: float

    @property
    def flags(self) -> tuple[str, ...]:
        """The rungs that failed, by name."""
        return tuple(rung.name for rung in self.rungs if not rung.passed)

    def table(self) -> pd.DataFrame:
        """One row a rung."""
        return pd.DataFrame(
            [(rung.name, "passed" if rung.passed else "FAILED", rung.detail) for rung in self.rungs],
            columns=["rung", "result", "detail"],
        )

    def verdict(self) -> str:
        """One line: clean, naive and worst accuracy, and whether the last can be believed."""
        why = "a weaker judge still finds more than the worst case"
        if MEMORY in self.flags:
            why = "its answers depend on what was asked before"
        elif f"{Strongest.name} runs" in self.flags:
            why = "the worst case could not be run"
        low, high = wilson(round(self.attacked * self.n), self.n)
        worst = f"{100 * self.attacked:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
        doubt = "" if self.reliable else f"; UNRELIABLE: {why}"
        return (
            f"{self.name} at {described(self.norm, self.eps)}, n = {self.n}: clean {100 * self.clean:.1f} %, "
            f"pgd leaves {100 * self.naive:.1f} %, everything leaves {worst}{doubt}"
        )

    def __str__(self) -> str:
        return "\n".join([self.verdict(), self.table().to_string(index=False)])

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.verdict())}</p>" + str(self.table().to_html(index=False))


def audit(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    norm: str = "linf",
    eps: str | float,
    sources: tuple[Classifier, ...] = (),
    box: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Audit:
    """Asks of `model` what every published defence that fell would have failed; images (n, ...) in `box`.

    Signs before any attack (models.probes); then noise, a single step, fewer steps, a smaller and the
    largest radius, and attacks without gradients must not beat projected gradient descent; what it leaves
    must not fall much further under `strongest`. Examples made on `sources`, and labels alone where scores
    or gradients are withheld, are the last rungs. Raises UserError for bad inputs or a norm that is no ball.
    """
    threat = ThreatModel(norm, parse_eps(eps), Box(*box))
    if threat.eps is None or threat.eps == 0:
        raise UserError("an audit needs an eps above 0: write it like 0.1 or 8/255")
    judged, batch = read_inputs(model, images, labels, threat.box, lenient=True)
    return _Auditor(judged, batch, threat, Randomness(seed)).run(sources)


class _Auditor:
    """The attacks' outcomes on one batch, and the rungs that compare them."""

    def __init__(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> None:
        self.model, self.batch, self.threat, self.randomness = model, batch, threat, randomness
        self.started, self.rungs = time.perf_counter(), list[Rung]()

    def run(self, sources: tuple[Classifier, ...]) -> Audit:
        first = asked(self.model, self.batch)
        found = signs(self.model, self.batch, self.threat)
        self.rungs += [Rung(sign.word, False, sign.detail) for sign in found]
        words = {sign.word for sign in found}
        original, self.model = self.model, as_declared(self.model, words, len(self.batch))
        with frozen(self.model), torch.no_grad():
            clean = self.model.right(self.batch.x, self.batch.y).cpu()
        pgd = self._pgd()
        self._gradient_rungs(pgd)
        worst = self._run(Strongest(), self.threat)
        strongest = self._none() if worst is None else _within(worst, self.threat.radius)
        persistent = self._persistent(pgd, strongest)
        self._compare("worst case beyond pgd", strongest, persistent, BEHIND, "strongest", "pgd")
        if worst is not None:
            strongest |= self._searched_on(worst.x_adv, ~strongest & clean)
        weaker = self._without_gradients(sources, labels=bool(words & {"labels", "no gradient"}))
        beaten = {name: other & ~strongest for name, other in weaker.items()}
        everything = ~clean | pgd | strongest
        for name, other in weaker.items():
            self._compare(f"{name} beyond gradients", other, pgd | strongest, AHEAD, name, "gradients")
            everything |= other
        self._remembers(original, first, words)
        reliable = worst is not None and all(float(more.double().mean()) <= AHEAD for more in beaten.values())
        reliable &= all(rung.passed for rung in self.rungs if rung.name == MEMORY)
        return Audit(
            name=self.model.name,
            norm=self.threat.norm,
            eps=self.threat.radius,
            n=len(self.batch),
            clean=float(clean.double().mean()),
            naive=float((~(pgd | ~clean)).double().mean()),
            attacked=float((~everything).double().mean()),
            broken=everything.numpy(),
            rungs=tuple(self.rungs),
            reliable=reliable,
            seconds=time.perf_counter() - self.started,
        )

    def _remembers(self, original: Classifier, first: Tensor, words: set[str]) -> None:
        """Fails where clean images get other answers than the `first` (k, classes) after all the attacks."""
        if words & {"random", MEMORY} or original.stochastic:
            return
        change = since(original, self.batch, first, together="batch-dependent" in words)
        said = f"logits of clean images change by {change:.2g} over the attacks"
        self.rungs.append(Rung(MEMORY, not change, said))

    def _pgd(self, eps: float | None = None, steps: int = 20, restarts: int = 2) -> Tensor:
        threat = self.threat if eps is None else replace(self.threat, eps=eps)
        return self._broken(PGD(steps=steps, restarts=restarts), threat)

    def _persistent(self, pgd: Tensor, strongest: Tensor) -> Tensor:
        """Which samples pgd breaks, on the margin and for longer too where the worst case is clearly ahead.

        Of honest networks 20 steps of cross-entropy may leave a sixth more; where gradients are masked more
        steps gain nothing.
        """
        if float(strongest.double().mean() - pgd.double().mean()) <= BEHIND + 1e-9:
            return pgd
        return pgd | self._broken(PGD(steps=100, restarts=10, loss="margin"))

    def _gradient_rungs(self, pgd: Tensor) -> None:
        self._compare("single step beyond many", self._broken(FGSM()), pgd, AHEAD, "fgsm", "pgd")
        few = self._pgd(steps=5, restarts=1)
        self._compare("few steps beyond many", few, pgd, AHEAD, "pgd of 5 steps", "pgd of 20")
        less = self._pgd(self.threat.radius / 2)
        self._compare("smaller radius beyond larger", less, pgd, AHEAD, "pgd at eps / 2", "pgd at eps")
        dimensions = self.batch.x[0].numel()
        whole = {"linf": 1.0, "l2": dimensions**0.5, "l1": float(dimensions)}[self.threat.norm]
        most = self._pgd(whole * self.threat.box.width, steps=40)
        left = float((~most).double().mean())
        self.rungs.append(
            Rung("unbounded attack", left <= AHEAD, f"pgd over the whole box leaves {100 * left:.0f} %")
        )
        self._compare("noise beyond gradients", self._noise(), pgd, AHEAD, "random noise", "pgd")

    def _without_gradients(self, sources: tuple[Classifier, ...], labels: bool) -> dict[str, Tensor]:
        """Attacks that need no gradient of the model; labels alone where that is all there is."""
        found: dict[str, Tensor] = {}
        if self.threat.norm in Square.norms:
            found["square"] = self._broken(Square(queries=QUERIES))
        for source in sources:
            found[f"transfer from {source.name}"] = self._broken(Transfer(source=source))
        if labels and self.threat.norm in HopSkipJump.norms:
            found["labels alone"] = self._broken(HopSkipJump(queries=LABEL_QUERIES))
        return found

    def _broken(self, attack: Attack, threat: ThreatModel | None = None) -> Tensor:
        """Which samples (n,) an attack breaks; none where it cannot be run on the model at all."""
        threat = threat or self.threat
        result = self._run(attack, replace(threat, eps=None) if attack.minimal else threat)
        return self._none() if result is None else _within(result, threat.radius)

    def _none(self) -> Tensor:
        return torch.zeros(len(self.batch), dtype=torch.bool)

    def _run(self, attack: Attack, threat: ThreatModel) -> AdversarialBatch | None:
        try:
            return attack.run(self.model, self.batch, threat, self.randomness.child(attack.name))
        except (NotApplicable, UserError, RuntimeError) as reason:
            failed = Rung(f"{attack.name} runs", False, str(reason).splitlines()[0])
            self.rungs += [] if failed in self.rungs else [failed]
            return None

    def _searched_on(self, points: Tensor, left: Tensor) -> Tensor:
        """Which of the samples `left` (n,) random search breaks from the points (n, ...) of the worst case.

        Where gradients are honest, 400 queries gain next to nothing on what they gained; where they are not,
        or some other rung failed, the search goes on for long.
        """
        rows, found = left.nonzero()[:, 0], self._none()
        if not len(rows) or self.threat.norm not in Square.norms:
            return found
        moved, broken, gain = self._search(rows, points[rows], PROBE)
        said = f"{PROBE} random queries gain {100 * gain:.1f} % on what gradients gained"
        self.rungs.append(Rung("random search after gradients", gain <= GAIN, said))
        if any(not rung.passed for rung in self.rungs):
            _, more, _ = self._search(rows, moved, PERSIST)
            broken |= more
        found[rows[broken.cpu()]] = True
        return found

    def _search(self, rows: Tensor, start: Tensor, queries: int) -> tuple[Tensor, Tensor, float]:
        """Points (k, ...), which of them break `rows` (k,), and the median gain over that up to `start`."""
        view, y = ScoreAccess(self.model, len(self.batch)), self.batch.y[rows]
        stream = self.randomness.child("search", queries)
        with frozen(self.model), torch.no_grad():
            moved, broken, _ = random_search(
                view, self.batch, rows.to(y.device), self.threat, stream,
                queries=queries, first=0.2, start=start,
            )  # fmt: skip
            broken &= verdict(self.model, moved, y)[1]  # of many looks at a random model some are lucky
            margins = [margin(self.model.logits(x), y) for x in (self.batch.x[rows], start, moved)]
        gain = (margins[1] - margins[2]) / (margins[0] - margins[1]).clamp(min=1e-6 * margins[0].abs().max())
        return moved, broken & self.threat.contains(self.batch.x[rows], moved), float(gain.median())

    def _noise(self) -> Tensor:
        """Which samples (n,) some of 10 random points of the ball's surface break."""
        broken = self._none()
        for draw in range(NOISES):
            stream, x = self.randomness.child("noise", draw), self.batch.x
            corner = stream.sign(self.batch.index, x.shape[1:]).to(x)
            moved = self.threat.project(x, x + self.threat.box.width * corner)
            with frozen(self.model), torch.no_grad():
                wrong = ~self.model.right(moved, self.batch.y)
            broken |= wrong.cpu()
        return broken

    def _compare(self, name: str, first: Tensor, second: Tensor, slack: float, one: str, other: str) -> None:
        """Fails where `first` breaks clearly more samples than `second`."""
        more, fewer = (float(broken.double().mean()) for broken in (first, second))
        said = f"{100 * more:.0f} % broken by {one}, {100 * fewer:.0f} % by {other}"
        self.rungs.append(Rung(name, more <= fewer + slack + 1e-9, said))


def _within(result: AdversarialBatch, radius: float) -> Tensor:
    near = result.distance <= radius * (1 + 1e-9)
    return (result.success & (near | ~result.clean)).cpu()
