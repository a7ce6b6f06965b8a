"""A vote over Gaussian noise around the input, whatever stands inside: the defence that has its own proof."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from defenses.inputs import InputDefense, register_input_defense
from models.architecture import Architecture
from models.base import Classifier
from models.errors import UserError
from models.smoothed import SmoothedClassifier, check_votes


@register_input_defense("smoothing")
@dataclass(frozen=True, kw_only=True)
class VoteOverNoise(InputDefense):
    """Lets the network vote on `votes` copies of the input under Gaussian noise of deviation `sigma`.

    It stands around the network and what stands before that. Votes have no gradient: adversaries follow the
    mean softmax over noisy copies (Salman et al. 2019). As the outermost defence it has a certificate in
    l2, `smoothing`; a network trained with noise of the same sigma votes best. The noise is drawn from the
    input's own content, so two passes agree. Raises UserError for sigma <= 0 or
    votes that always abstain.
    Source: Cohen, Rosenfeld, Kolter 2019, 1902.02918, section 3.2.1 (PREDICT).
    """

    paper = "Cohen, Rosenfeld, Kolter 2019, 1902.02918"

    sigma: float = 0.5
    votes: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0:
            raise UserError(f"smoothing needs a positive sigma, not {self.sigma:g}")
        check_votes(self.votes)

    def around(self, model: Classifier, architecture: Architecture) -> tuple[nn.Module, nn.Module | None]:
        voting = SmoothedClassifier(model.network, self.sigma, self.votes)
        followed = SmoothedClassifier(model.surrogate or model.network, self.sigma, self.votes)
        return voting, followed.soft()
