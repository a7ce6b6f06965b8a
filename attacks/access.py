"""What an adversary may see of a model, with an exact count of what it used.

Each view counts per sample of the batch under attack (`rows` are positions in that batch,
repeated where one sample is evaluated several times); `rows=None` books the cost on the
attack as a whole, for what is fitted on other images.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from attacks.insight import ASKED, Insight, Values, Windows, granted
from attacks.losses import margin_loss
from attacks.smoothed import Smoothed
from models.base import Classifier
from models.errors import NotApplicable

V = TypeVar("V", bound="Access")

# How far towards the middle of the box a gradient that is no number is asked for again.
NUDGE = 1e-3
# A gradient that is nothing all the same may have been lost in numbers too small or too large for it.
SCALES = (1.0, 2.0**-100, 2.0**100)


class Look(NamedTuple):
    """Windows of `width` times the `reaches`, and what values are multiplied by."""

    reaches: list[Tensor] | None
    width: float
    scale: float


class Access:
    """The counters shared by all views: forward and backward passes of each of n samples.

    slope (n,) is 0 where no gradient was asked for, 1 where every one was zero throughout, 2 elsewhere.
    An attack of several stages also notes here which of them broke which sample. With `record`ed labels
    the loss max_{j != y} z_j - z_y of every look at a sample's logits is kept, in order.
    """

    def __init__(self, model: Classifier, n: int) -> None:
        self._model = model
        self.num_classes = model.num_classes
        self.stochastic = model.stochastic
        self.box = model.box
        self.forward = torch.zeros(n, dtype=torch.int64)
        self.backward = torch.zeros(n, dtype=torch.int64)
        self.shared_forward = 0
        self.shared_backward = 0
        self.slope = torch.zeros(n, dtype=torch.int64)
        self.stage = torch.full((n,), -1, dtype=torch.int64)
        self.stages: list[str] = []
        self._truth: Tensor | None = None
        self._looks: list[tuple[Tensor, Tensor]] = []

    def record(self, y: Tensor) -> None:
        """Keeps the loss against the labels y (n,) of every look from now on."""
        self._truth = y

    @property
    def history(self) -> Tensor:
        """The losses of each sample's looks in order, (n, most looks) float64, NaN after the last."""
        n = len(self.forward)
        none = torch.zeros(0)
        rows = torch.cat([rows for rows, _ in self._looks] or [none.long()])
        values = torch.cat([values for _, values in self._looks] or [none.double()])
        counts = torch.bincount(rows, minlength=n)
        order = rows.argsort(stable=True)
        place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows[order]]
        table = torch.full((n, int(counts.max()) if n else 0), torch.nan, dtype=torch.float64)
        table[rows[order], place] = values[order]
        return table

    def moved(self, positions: Tensor) -> None:
        """Says that its samples are those at `positions` of a larger batch, for what was recorded."""
        self._looks = [(positions[rows], values) for rows, values in self._looks]

    def _note(self, logits: Tensor, rows: Tensor | None) -> None:
        if self._truth is None or rows is None:
            return
        truth = self._truth.to(rows.device)[rows].to(logits.device)
        self._looks.append((rows.cpu(), margin_loss(logits.detach(), truth).double().cpu()))

    def credit(self, rows: Tensor, stage: str) -> None:
        """Notes that the attack's part `stage` broke the samples `rows`."""
        if stage not in self.stages:
            self.stages.append(stage)
        self.stage[rows.cpu()] = self.stages.index(stage)

    def won_by(self) -> list[str]:
        """The stage that broke each sample, "" where none was noted."""
        return ["" if place < 0 else self.stages[place] for place in self.stage.tolist()]

    def part(self, view: type[V], n: int, y: Tensor | None = None) -> V:
        """A view of the same model that counts from zero on n samples, for an attack within an attack.

        It records against the labels y (n,) where this one records.
        """
        part = view(self._model, n)
        if self._truth is not None and y is not None:
            part.record(y)
        return part

    def absorb(self, part: Access, rows: Tensor) -> None:
        """Books what `part` cost on the samples `rows` that it was opened for."""
        self.forward[rows.cpu()] += part.forward
        self.backward[rows.cpu()] += part.backward
        self.shared_forward += part.shared_forward
        self.shared_backward += part.shared_backward
        self.slope[rows.cpu()] = torch.maximum(self.slope[rows.cpu()], part.slope)
        self._looks += [(rows.cpu()[looked], values) for looked, values in part._looks]

    def _weigh(self, gradient: Tensor, rows: Tensor | None) -> None:
        """Notes whose gradients (k, ...) are not zero throughout, as long as that is not known of all."""
        if rows is None or bool((self.slope == 2).all()):
            return
        found = 1 + (gradient != 0).flatten(1).any(1).long().cpu()
        self.slope.scatter_reduce_(0, rows.cpu(), found, "amax")

    def _book(self, x: Tensor, rows: Tensor | None, backward: int = 0) -> None:
        if rows is None:
            self.shared_forward += len(x)
            self.shared_backward += backward * len(x)
            return
        counts = torch.bincount(rows.cpu(), minlength=len(self.forward))
        self.forward += counts
        self.backward += backward * counts


class GradientAccess(Access):
    """White box: logits and gradients of the network (of its surrogate, where it declares one)."""

    def __init__(self, model: Classifier, n: int) -> None:
        super().__init__(model, n)
        self._insight = Insight(model)

    @property
    def dark(self) -> bool:
        """Whether the model, last asked for a smoothed gradient, had none of any kind."""
        return self._insight.dark

    def logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Logits (k, classes) of x (k, ...), without gradients."""
        self._book(x, rows)
        logits = self._insight.logits(x)
        self._note(logits, rows)
        return logits

    def gradient(self, x: Tensor, rows: Tensor | None, values: Values) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (k, classes), values(logits) (k,), and each sample's gradient of its own value (as x).

        Where a surrogate gives the gradient, logits and values are the network's own all the same, at the
        cost of another forward pass: an attack stops at what fools the network.
        """
        self._book(x, rows, backward=1)
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self._model.differentiable_logits(x)
            value = values(self._with_gradient(logits))
            with granted(self._model.name):
                (gradient,) = torch.autograd.grad(value.sum(), x)
        self._weigh(gradient, rows)
        if self._model.surrogate is not None:
            logits = self.logits(x.detach(), rows)
            return logits, values(logits), gradient
        self._note(logits, rows)
        return logits.detach(), value.detach(), gradient

    def reach(self, x: Tensor, rows: Tensor | None, copies: int) -> tuple[Tensor, list[Tensor]]:
        """Logits (copies * k, classes) of noisy copies, and how far each activation's input moves.

        x (copies * k, ...) holds the copies of k samples one after the other; the list has one tensor
        (k, ...) a call.
        """
        self._book(x, rows)
        logits, reaches = self._insight.reach(x, copies)
        self._note(logits, rows)
        return logits, reaches

    def relaxed(self, x: Tensor) -> Tensor:
        """Values (k, classes) like logits where averages stand for what is looked up by a largest score."""
        self._book(x, None)
        return self._insight.relaxed(x)

    def smoothed_gradient(
        self, x: Tensor, rows: Tensor | None, values: Values, reaches: list[Tensor] | None, width: float
    ) -> tuple[Tensor, Tensor]:
        """The network's own logits (k, classes), and gradients with derivatives averaged over windows (as x).

        Window sizes are `width` times the `reaches`. Gradients that the network withholds are passed straight
        through (attacks.withheld); zero where there still is none, or NaN. Where a surrogate gives the
        gradient, the logits cost another forward pass.
        """
        logits, gradient = self._differentiate(x, rows, values, lambda: Smoothed(reaches, width))
        for scale in SCALES:
            flat = (gradient == 0).flatten(1).all(1).nonzero()[:, 0]
            if not len(flat) or self._insight.dark:
                break
            gradient[flat] = self._leaking(x, rows, values, logits, flat, Look(reaches, width, scale))
        return (logits if self._model.surrogate is None else self.logits(x, rows)), gradient

    def _leaking(
        self, x: Tensor, rows: Tensor | None, values: Values, found: Tensor, flat: Tensor, look: Look
    ) -> Tensor:
        """The gradient with leaks at those of x that are `flat` (k,); `found` are the logits at x."""
        parts = [part[flat] if len(part) == len(x) else part for part in look.reaches or []]
        mine = None if rows is None else rows[flat]
        self._book(x[flat], mine, backward=1)
        again, gradient = self._insight.gradient(
            x[flat],
            lambda some: look.scale * values(found.index_copy(0, flat, some)),
            lambda: Smoothed(parts, look.width, leaky=True),
            tame=True,
        )
        self._note(again, mine)
        return gradient

    def blind(self, x: Tensor, rows: Tensor | None, values: Values) -> Tensor:
        """Whether each value's true gradient at x (k, ...) is zero everywhere, or none at all (k,)."""
        _, gradient = self._differentiate(x, rows, values)
        return (gradient == 0).flatten(1).all(1)

    def _differentiate(
        self, x: Tensor, rows: Tensor | None, values: Values, smoothed: Windows | None = None
    ) -> tuple[Tensor, Tensor]:
        self._book(x, rows, backward=1)
        if smoothed is not None and self._insight.unasked:
            # With gradients, without and looked into: of the model, not of any sample.
            self._book(x[:ASKED].repeat(3, *[1] * (x.dim() - 1)), None)
        logits, gradient = self._insight.gradient(x, values, smoothed)
        finite = torch.isfinite(gradient)
        if not bool(finite.all()):
            # A square root at 0, a norm of nothing: a hair further inside the box there often is a number.
            box = self._model.box
            self._book(x, rows, backward=1)
            nearby = x + NUDGE * ((box.lower + box.upper) / 2 - x)
            _, beside = self._insight.gradient(nearby, values, smoothed, tame=smoothed is not None)
            gradient = torch.where(finite, gradient, beside).nan_to_num(0.0, 0.0, 0.0)
        self._note(logits, rows)
        self._weigh(gradient, rows)
        return logits, gradient

    def _with_gradient(self, logits: Tensor) -> Tensor:
        """The logits; raises NotApplicable where they have none to give."""
        if not logits.requires_grad:
            raise NotApplicable(
                f"model '{self._model.name}' hands out no gradient: declare a surrogate, or take an attack "
                "that needs none (strongest, square, hopskipjump)"
            )
        return logits

    def _pulled(self, logits: Tensor, x: Tensor, directions: Tensor) -> Tensor:
        """The directions (m, k, classes) pulled back to x: (m, k, ...), the same numbers either way."""
        if x.device.type != "cpu" or not any(isinstance(one, nn.MaxPool2d) for one in self._model.modules()):
            return torch.autograd.grad(logits, x, directions, is_grads_batched=True)[0]
        # Max pooling has no batched backward pass on a CPU: one by one is a quarter faster there.
        return torch.stack([torch.autograd.grad(logits, x, one, retain_graph=True)[0] for one in directions])

    def jacobian(self, x: Tensor, rows: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (k, classes) and the gradients of m linear functionals of the logits: (m, k, ...).

        `directions` (m, k, classes) holds the functionals; one forward pass, m batched backward passes.
        """
        self._book(x, rows, backward=len(directions))
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self._model.differentiable_logits(x)
            self._with_gradient(logits)
            with granted(self._model.name):
                gradients = self._pulled(logits, x, directions)
        self._weigh(gradients.transpose(0, 1), rows)
        self._note(logits, rows)
        return logits.detach(), gradients


class ScoreAccess(Access):
    """Black box that hands out logits and nothing else."""

    def logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Logits (k, classes) of x (k, ...)."""
        self._book(x, rows)
        with torch.no_grad():
            logits = self._model.logits(x)
        self._note(logits, rows)
        return logits


class LabelAccess(Access):
    """Black box that hands out predicted labels and nothing else (Papernot et al. 2017's oracle)."""

    def labels(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Predicted labels (k,) of x (k, ...)."""
        self._book(x, rows)
        with torch.no_grad():
            return self._model.logits(x).argmax(1)
