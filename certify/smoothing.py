"""Randomized smoothing: what a vote over Gaussian noise proves of the voting classifier, up to chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import beta, norm
from torch import Tensor

from certify.base import Certifier, register_certifier
from models.base import Batch, Classifier
from models.cost import Cost
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.smoothed import SmoothedClassifier, count_votes
from models.threat import ThreatModel


def least_share(count: Tensor, votes: int, alpha: float) -> Tensor:
    """Lower bounds (n,) on the probabilities of which `count` (n,) of `votes` draws were hits, at 1 - alpha.

    Source: Clopper, Pearson 1934, one-sided: the alpha quantile of Beta(count, votes - count + 1).
    """
    hits = count.cpu().double().numpy()
    found = torch.from_numpy(beta.ppf(alpha, hits, votes - hits + 1))
    return torch.where(count.cpu() > 0, torch.nan_to_num(found, 0.0), 0.0).to(count.device)


def smoothed_radius(share: Tensor, sigma: float) -> Tensor:
    """sigma Phi^-1(share): the l2 radius (n,) within which a class of that probability stays on top.

    Zero where the share is at most a half, which is to abstain. Source: Cohen et al. 2019, Theorem 1 with
    p_B = 1 - p_A.
    """
    found = torch.from_numpy(norm.ppf(share.cpu().double().numpy())).to(share.device)
    return torch.where(share > 0.5, sigma * found, 0.0)


def l2_reach(threat: ThreatModel, x: Tensor) -> float:
    """The radius of an l2 ball that holds the threat's: eps for l2 and l1, eps sqrt(d) for linf."""
    return threat.radius * (x[0].numel() ** 0.5 if threat.norm == "linf" else 1.0)


@register_certifier("smoothing")
@dataclass(frozen=True, kw_only=True)
class Smoothing(Certifier):
    """Certifies the vote of a smoothed classifier, in l2 and what l2 holds, with probability 1 - alpha each.

    What is certified is the classifier that votes (SmoothedClassifier), never the network inside: on any
    other classifier this certificate does not apply. `selection` noisy copies choose the class, `samples`
    fresh ones bound its probability p from below at confidence 1 - alpha; in an l2 ball of radius r the
    class keeps a probability of at least Phi(Phi^-1(p) - r / sigma). The lower bounds are on differences
    of probabilities, 2 Phi(Phi^-1(p) - r / sigma) - 1: positive where r < sigma Phi^-1(p). Where another
    class is chosen the bound is -1. An l1 ball lies in the l2 ball of its radius, an linf ball in that of
    sqrt(d) times it; the box is not used. The statement is of the exact vote; one of few copies may abstain.
    Raises UserError for no samples or alpha outside (0, 1); NotApplicable for other classifiers.
    Source: Cohen, Rosenfeld, Kolter 2019, 1902.02918, Theorem 1 and section 3.2.2 (CERTIFY).
    """

    paper = "Cohen, Rosenfeld, Kolter 2019, 1902.02918"
    cost = Cost.MEDIUM
    confidence = 0.999
    tolerance = 1e-9

    selection: int = 100
    samples: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if self.selection < 1 or self.samples < 1:
            raise UserError("smoothing needs at least one copy for selection and one sample")
        if not 0 < self.alpha < 1:
            raise UserError(f"smoothing needs an alpha between 0 and 1, not {self.alpha:g}")
        object.__setattr__(self, "confidence", 1 - self.alpha)

    def shares(self, model: Classifier, batch: Batch, randomness: Randomness) -> tuple[Tensor, Tensor]:
        """The class that each sample's vote selects, and a lower bound on its probability: both (n,)."""
        smoothed = model.network
        if not isinstance(smoothed, SmoothedClassifier):
            raise NotApplicable(
                f"'{model.name}' is no smoothed classifier: smoothing certifies a vote over noise alone"
            )
        sigma, base = smoothed.sigma, smoothed.base
        with torch.no_grad():
            selected = count_votes(
                base, batch.x, sigma, self.selection, batch.index, randomness.child("selection")
            ).argmax(1)
            count = count_votes(
                base, batch.x, sigma, self.samples, batch.index, randomness.child("estimation")
            )
        hits = count.gather(1, selected[:, None])[:, 0]
        return selected, least_share(hits, self.samples, self.alpha)

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        selected, share = self.shares(model, batch, randomness)
        assert isinstance(model.network, SmoothedClassifier)
        reach = l2_reach(threat, batch.x) / model.network.sigma if len(batch) else 0.0
        kept = norm.cdf(norm.ppf(share.cpu().double().numpy()) - reach)
        margin = 2 * torch.from_numpy(kept).to(share) - 1
        margin = torch.where(selected == batch.y, margin, -1.0)
        return margin[:, None].expand(-1, model.num_classes)
