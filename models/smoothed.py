"""A classifier that votes over Gaussian noise around its input: what randomized smoothing certifies."""

from __future__ import annotations

import math

import torch
from scipy.stats import binom
from torch import Tensor, fx, nn

from models.errors import NotApplicable, UserError
from models.randomness import Randomness

# Noisy copies of a sample that are drawn together: a stream each, so that more votes add to fewer.
BLOCK = 50

# The level of a vote's test: small because an adversary asks many times.
ALPHA = 1e-6

# Noisy inputs that the network sees at once.
INPUTS = 2000


def count_votes(
    base: nn.Module, x: Tensor, sigma: float, votes: int, index: Tensor, randomness: Randomness
) -> Tensor:
    """How often `base` says each class at x + N(0, sigma^2 I): int64 (n, classes), rows sum to `votes`.

    x (n, ...); the noise of a sample depends on `randomness` and its entry of `index` (n,) alone. Noisy
    inputs are not clipped to any box. Ties in a vote go to the lower class. Raises UserError for NaN.
    """
    total: Tensor | None = None
    for block in range(math.ceil(votes / BLOCK)):
        size = min(BLOCK, votes - block * BLOCK)
        noise = randomness.child("block", block).normal(index, (size, *x.shape[1:])).to(x)
        noisy = (x.unsqueeze(1) + sigma * noise).flatten(0, 1)
        logits = torch.cat([base(part) for part in noisy.split(INPUTS)])
        if torch.isnan(logits).any():
            raise UserError("the network under the noise returned NaN: check its weights")
        said = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).unflatten(0, (len(x), size)).sum(1)
        total = said if total is None else total + said
    assert total is not None
    return total


def content_index(x: Tensor) -> Tensor:
    """A number (n,) made of each sample's entries: what names its noise where no place in a data set does."""
    entries = (x.detach().flatten(1).float() + 0.0).view(torch.int32).to(torch.int64)
    odd = 2 * torch.arange(entries.shape[1], device=x.device, dtype=torch.int64) + 1
    return (entries * (odd * 0x9E3779B97F4A7C15 % (1 << 62) | 1)).sum(1)


def check_votes(votes: int, alpha: float = ALPHA) -> None:
    """Raises UserError for votes so few that they abstain even where all agree."""
    if votes < 1:
        raise UserError(f"smoothing needs at least one vote, not {votes}")
    if 2 * 0.5**votes > alpha:
        least = math.ceil(math.log2(2 / alpha))
        raise UserError(
            f"smoothing with {votes} votes always abstains at level {alpha:g}: give {least} votes or more"
        )


class SmoothedClassifier(nn.Module):
    """The class that `base` says most often at x + N(0, sigma^2 I), by a vote of `votes` noisy copies.

    Returns log((count + 1) / (votes + classes)) as logits (n, classes), and equal ones, a tie, where the
    vote abstains: where a two-sided binomial test at level `alpha` does not tell the first two classes
    apart. That is right for no label, but broken by no attack: more votes would decide, and of these the
    certificate speaks. The noise is drawn from the input's own content and `seed`: two calls agree, and
    batches do not matter. No gradient passes through a vote: `soft()` is what an adversary follows. Raises
    UserError for sigma <= 0, alpha outside (0, 1), or votes that always abstain.
    Source: Cohen, Rosenfeld, Kolter 2019, 1902.02918, section 3.2.1 (PREDICT).
    """

    abstaining = True

    def __init__(
        self, base: nn.Module, sigma: float, votes: int = 100, seed: int = 0, alpha: float = ALPHA
    ) -> None:
        super().__init__()
        if not sigma > 0:
            raise UserError(f"smoothing needs a positive sigma, not {sigma:g}")
        if not 0 < alpha < 1:
            raise UserError(f"smoothing needs an alpha between 0 and 1, not {alpha:g}")
        check_votes(votes, alpha)
        self.base, self.sigma, self.votes, self.seed, self.alpha = base, sigma, votes, seed, alpha

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            raise NotApplicable("a vote over noise has no operations to bound: only 'smoothing' certifies it")
        with torch.no_grad():
            count = count_votes(
                self.base, x, self.sigma, self.votes, content_index(x), Randomness(self.seed).child("vote")
            )
        logits = torch.log((count + 1) / (self.votes + count.shape[1])).to(x)
        return torch.where(self.abstains(count)[:, None], torch.zeros_like(logits), logits)

    def abstains(self, count: Tensor) -> Tensor:
        """Whether votes (n, classes) leave the first two classes undecided: bool (n,)."""
        first, second = count.topk(2, dim=1).values.cpu().double().numpy().T
        doubt = torch.from_numpy(2 * binom.sf(first - 1, first + second, 0.5))
        return (doubt > self.alpha).to(count.device)

    def soft(self, draws: int = 10) -> nn.Module:
        """The log of the mean softmax over `draws` noisy copies, which has a gradient.

        Source: Salman, Yang, Li, Zhang, Zhang, Razenshteyn, Bubeck 2019, 1906.04584, equation 6.
        """
        return _Soft(self.base, self.sigma, draws, self.seed)


class _Soft(nn.Module):
    def __init__(self, base: nn.Module, sigma: float, draws: int, seed: int) -> None:
        super().__init__()
        self.base, self.sigma, self.draws, self.seed = base, sigma, draws, seed

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.draws, *x.shape[1:])
        noise = Randomness(self.seed).child("soft").normal(content_index(x), shape).to(x)
        noisy = (x.unsqueeze(1) + self.sigma * noise).flatten(0, 1)
        logs = self.base(noisy).log_softmax(1).unflatten(0, (len(x), self.draws))
        return torch.logsumexp(logs, 1) - math.log(self.draws)
