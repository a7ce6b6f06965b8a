"""SparseFool: DeepFool tells where the boundary lies, and a linear program which few entries reach it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.deepfool import DeepFool, walk
from attacks.losses import against, clearly_wrong, margin_loss, rounding
from attacks.nearest import Best, closer
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("sparsefool")
@dataclass(frozen=True, kw_only=True)
class SparseFool(Attack):
    """Moves the few entries that reach the boundary linearised where DeepFool meets it, pass after pass.

    From z DeepFool finds a point b across the boundary in l2 and w = grad(max_{j != y} z_j - z_y) at b, and z
    moves to the nearest point of the box with w . (z' - z) = lambda |w . (b - z)|: in l1 entries of largest
    |w_d| first, each to its bound, the last one in part (the paper's linear solver); in l0, which the paper
    only measures, the fewest that gain as much, each to its bound. `steps` passes, until the model errs at z.
    The paper's lambda is `lam` throughout: the points of that, which `grow` = False gives, lie three times as
    far as need be, where bounds leave the steep entries no room. With `grow` lambda is 1 in the first pass
    and rises by a factor a pass to `lam` in the last, for samples that small moves do not bring across.
    `overshoot` is DeepFool's and makes b lie behind the boundary, so that z' needs none of its own; that
    DeepFool stays within the box and leaves out what a bound blocks, at half the passes. `halvings` forward
    passes bring the point closer at the end, which the paper does not. With an eps a farther point is handed
    over projected on the ball. It rests on flat boundaries: on adversarially trained convolutional networks,
    whose boundaries bend, `fmn` comes several times as near in l1.
    Source: Modas, Moosavi-Dezfooli, Frossard 2019, 1811.02248, algorithms 1 and 2, and lambda of section 3.3.
    """

    paper = "Modas, Moosavi-Dezfooli, Frossard 2019, 1811.02248"
    norms = ("l1", "l0")
    minimal = True
    cost = Cost.MEDIUM

    steps: int = 20
    lam: float = 3.0
    grow: bool = True
    overshoot: float = 0.02
    classes: int = 10
    halvings: int = 6

    def __post_init__(self) -> None:
        if self.lam < 1 or self.overshoot < 0 or self.classes < 2:
            raise UserError(
                "sparsefool needs lam >= 1, overshoot >= 0 and classes >= 2, "
                f"not {self.lam:g}, {self.overshoot:g} and {self.classes}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        rows = torch.arange(len(batch), device=batch.x.device)
        best, live, z = Best.none(batch.x), rows, batch.x
        for step in range(self.steps):
            if not len(live):
                break
            ahead = self._ahead(model, z, batch.y[live], live, threat, self._push(step))
            wrong = clearly_wrong(model.logits(ahead, live), batch.y[live])
            best.offer(live, ahead, threat.distance(batch.x[live], ahead), wrong)
            # A sample that no gradient moves stays where it is in every pass.
            going = ~wrong & (ahead != z).flatten(1).any(1)
            live, z = live[going], ahead[going]
        goal = -1.0 if threat.eps is None else threat.eps
        closer(model, batch, rows[best.distance > goal], threat, best, self.halvings)
        return threat.project(batch.x, best.point)

    def _push(self, step: int) -> float:
        """lambda of pass `step`."""
        return self.lam ** (step / max(1, self.steps - 1)) if self.grow else self.lam

    def _ahead(
        self, model: GradientAccess, z: Tensor, y: Tensor, rows: Tensor, threat: ThreatModel, push: float
    ) -> Tensor:
        """One pass from z (k, ...): the nearest point `push` times as far as the boundary, to first order."""
        edge, _ = walk(
            model,
            z,
            y,
            rows,
            ThreatModel("l2", None, threat.box),
            steps=DeepFool.steps,
            overshoot=self.overshoot,
            classes=self.classes,
            tangent=True,
        )
        logits, _, normal = model.gradient(edge, rows, against(margin_loss, y))
        gain = (normal.double() * (edge.double() - z.double())).flatten(1).sum(1).abs()
        # The edge errs by no more than rounding where the overshoot is small.
        move, _ = threat.nearest_gain(z, normal, push * gain + 2 * rounding(logits))
        return threat.box.clamp((z.double() + move).to(z))
