"""The tail of the spectrum: images hardly move along their last principal components, attacks do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from defenses.detect.detector import Detector, Score, register_detector
from defenses.principal_components import fit
from models.base import Batch, Classifier
from models.errors import UserError


class TailEnergy(Score):
    """mean_i c_i^2 / (v_i + ridge) over the tail's coefficients c = axes (x - mean), v their variances."""

    def __init__(self, mean: Tensor, axes: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.mean, self.axes, self.weights = mean, axes, weights

    def forward(self, x: Tensor) -> Tensor:
        coefficients = (x.flatten(1) - self.mean) @ self.axes.T
        return coefficients.square() @ self.weights


@register_detector("pca-tail")
@dataclass(frozen=True, kw_only=True)
class PCATail(Detector):
    """Scores the energy of an image's last principal components, each in units of its clean variance.

    The first `components` are left out; `ridge` is added to the variances, of which many are zero where
    pixels never change. The model is not asked. Raises UserError for a negative number of components, one
    that leaves no tail, or ridge <= 0.
    Source: Hendrycks, Gimpel 2017, 1608.00530, section 2 (there by the variance of whitened coefficients).
    """

    paper = "Hendrycks, Gimpel 2017, 1608.00530"

    components: int = 100
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ridge > 0:
            raise UserError(f"pca-tail needs a positive ridge, not {self.ridge:g}")

    def fit(self, model: Classifier, clean: Batch) -> Score:
        entries = clean.x[0].numel()
        if self.components >= entries:
            raise UserError(f"pca-tail: {self.components} components leave no tail of {entries} entries")
        found = fit(clean.x, entries)
        tail = slice(self.components, entries)
        weights = 1 / (found.variances[tail].clamp(min=0) + self.ridge) / (entries - self.components)
        return TailEnergy(*(part.to(clean.x) for part in (found.mean, found.axes[tail], weights)))
