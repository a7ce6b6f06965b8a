"""Randomized smoothing: exact on half-spaces, honest about chance, and silent on what is not smoothed."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from torch import nn

from attacks.base import verdict
from certify.crown import Crown
from certify.smoothing import Smoothing, l2_reach, least_share, smoothed_radius
from models.base import Batch, Classifier
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.smoothed import BLOCK, SmoothedClassifier, content_index, count_votes
from models.threat import ThreatModel
from tests.certify.builders import batch, model

SIGMA = 0.5


def half_space(scale=1.0):
    """Class 1 where x0 + 2 x1 > 1: a linear classifier on the plane."""
    line = nn.Linear(2, 2)
    with torch.no_grad():
        line.weight.copy_(scale * torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
        line.bias.copy_(scale * torch.tensor([0.0, -1.0]))
    return line


def smoothed(base, classes=2, **chosen):
    return Classifier(
        SmoothedClassifier(base, SIGMA, **chosen).eval(), num_classes=classes, name="vote"
    ).eval()


def points(n=64, seed=0):
    """Points of the unit square with their class and their distance to the line."""
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))
    excess = x[:, 0] + 2 * x[:, 1] - 1
    return Batch.of(x, (excess > 0).long()), excess.abs().double() / 5**0.5


def radii(samples, seed=0, data=None):
    judged = smoothed(half_space())
    data = data or points()[0]
    selected, share = Smoothing(samples=samples).shares(judged, data, Randomness(seed))
    return torch.where(selected == data.y, smoothed_radius(share, SIGMA), 0.0)


def test_on_a_half_space_the_radius_nears_the_distance_and_stays_below_it():
    _, distance = points()
    few, many = radii(1000), radii(40_000)
    within = (distance > 0.2) & (distance < 2 * SIGMA)
    assert (few <= distance + 1e-9).all()
    assert (many <= distance + 1e-9).all()
    assert (distance - many)[within].max() < 0.06
    assert (distance - many)[within].mean() < 0.5 * (distance - few)[within].mean()


def test_certified_means_that_the_radius_reaches_beyond_eps():
    data, distance = points()
    radius = radii(1000, data=data)
    for eps in (0.0, 0.05, 0.2, 0.5):
        found = Smoothing().run(smoothed(half_space()), data, ThreatModel("l2", eps), Randomness(0))
        assert torch.equal(found.certified, radius > eps)
        assert (distance[found.certified] >= eps).all()
        assert found.confidence == pytest.approx(0.999)


def test_the_bounds_hold_for_the_true_probabilities_anywhere_in_the_ball():
    data, _ = points(16)
    normal = torch.tensor([1.0, 2.0], dtype=torch.float64) / 5**0.5
    eps = 0.2
    lower = (
        Smoothing(samples=4000)
        .run(smoothed(half_space()), data, ThreatModel("l2", eps), Randomness(1))
        .margin
    )
    signed = (data.x.double() @ normal) - 1 / 5**0.5
    worst = torch.where(data.y == 1, signed - eps, -signed - eps)
    truth = torch.from_numpy(2 * norm.cdf(worst.numpy() / SIGMA) - 1)
    assert (lower <= truth + 1e-9).all()
    assert (truth - lower).median() < 0.1


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_the_share_covers_the_truth_as_often_as_it_says(p):
    n, alpha = 200, 0.05
    counts = torch.arange(n + 1)
    share = least_share(counts, n, alpha).numpy()
    missed = binom.pmf(np.arange(n + 1), n, p)[share > p].sum()
    assert missed <= alpha
    assert missed > 0.3 * alpha or p == 0.99
    assert (np.diff(share) > 0).all()
    assert share[0] == 0.0
    assert share[n] == pytest.approx(alpha ** (1 / n))


def test_more_samples_of_the_same_share_prove_more():
    shares = [float(least_share(torch.tensor([9 * n]), 10 * n, 0.001)) for n in (10, 100, 1000, 10_000)]
    assert shares == sorted(shares)
    assert shares[-1] < 0.9
    assert float(smoothed_radius(torch.tensor([shares[-1]]), SIGMA)) < SIGMA * norm.ppf(0.9)


def test_a_tie_abstains_and_is_certified_at_no_radius():
    on_the_line = Batch.of(torch.tensor([[0.2, 0.4], [1.0, 0.0]]), torch.tensor([0, 1]))
    judged = smoothed(half_space())
    assert (radii(1000, data=on_the_line) == 0).all()
    assert not Smoothing().run(judged, on_the_line, ThreatModel("l2", 0.0), Randomness(0)).certified.any()
    assert torch.equal(judged.logits(on_the_line.x), torch.zeros(2, 2))
    sure = judged.logits(torch.tensor([[1.0, 1.0]]))
    assert sure[0, 1] > sure[0, 0]


@pytest.mark.parametrize("label", [0, 1])
def test_an_abstention_is_right_for_no_label_and_broken_by_no_attack(label):
    """The certificate is of the exact vote: few votes that do not decide do not contradict it."""
    sign = 1.0 if label else -1.0
    start = torch.tensor([[0.5, 0.5]]) + sign * torch.tensor([[0.8, 0.8]])
    judged, y = smoothed(half_space()), torch.tensor([label])
    on_the_line = torch.tensor([[0.2, 0.4]])
    assert judged.right(start, y).item()
    assert not judged.right(on_the_line, y).item()
    assert not verdict(judged, on_the_line, y)[1].item()
    assert Classifier(nn.Flatten(), num_classes=2).right(torch.zeros(1, 2), 0 * y).item()


def test_votes_abstain_exactly_where_the_binomial_test_is_in_doubt():
    vote = SmoothedClassifier(half_space(), SIGMA, votes=100, alpha=1e-3)
    counts = torch.tensor([[k, 100 - k] for k in range(101)])
    expected = [binom.cdf(min(k, 100 - k), 100, 0.5) * 2 > 1e-3 for k in range(101)]
    assert vote.abstains(counts).tolist() == expected


def test_votes_belong_to_the_sample_and_more_of_them_add_to_fewer():
    data, _ = points(7)
    base = half_space()
    whole = count_votes(base, data.x, SIGMA, 130, data.index, Randomness(3))
    singles = [
        count_votes(base, x[None], SIGMA, 130, i[None], Randomness(3))
        for x, i in zip(data.x, data.index, strict=True)
    ]
    assert torch.equal(whole, torch.cat(singles))
    assert (whole.sum(1) == 130).all()
    fewer = count_votes(base, data.x, SIGMA, BLOCK + 10, data.index, Randomness(3))
    assert ((whole - fewer) >= 0).all()
    assert not torch.equal(whole, count_votes(base, data.x, SIGMA, 130, data.index, Randomness(4)))


def test_the_answer_does_not_depend_on_the_batch_or_the_call():
    data, _ = points(9)
    judged = smoothed(half_space())
    runs = [
        Smoothing().run(judged, data, ThreatModel("l2", 0.1), Randomness(0), batch_size=size).lower
        for size in (1, 4, 64)
    ]
    assert torch.equal(runs[0], runs[2])
    assert torch.equal(runs[1], runs[2])
    logits = judged.logits(data.x)
    assert torch.equal(logits, judged.logits(data.x))
    assert torch.equal(logits, torch.cat([judged.logits(x[None]) for x in data.x]))
    assert len(set(content_index(data.x).tolist())) == 9
    assert torch.equal(content_index(torch.tensor([[0.0]])), content_index(torch.tensor([[-0.0]])))


def test_balls_of_other_norms_lie_in_the_l2_ball():
    x = torch.zeros(1, 3, 4, 5)
    assert l2_reach(ThreatModel("l2", 0.3), x) == 0.3
    assert l2_reach(ThreatModel("l1", 0.3), x) == 0.3
    assert l2_reach(ThreatModel("linf", 0.1), x) == pytest.approx(0.1 * 60**0.5)
    for norm_name in ("l1", "linf"):
        threat = ThreatModel(norm_name, 0.7, model("mlp").box)
        moved = threat.sample(x.expand(50, -1, -1, -1) + 0.5, torch.arange(50), Randomness(0)) - 0.5
        assert float(moved.flatten(1).norm(dim=1).max()) <= l2_reach(threat, x) + 1e-6


def test_what_is_not_smoothed_is_refused_and_what_is_smoothed_by_proofs():
    data = batch(2)
    with pytest.raises(NotApplicable, match="no smoothed classifier"):
        Smoothing().run(model("mlp"), data, ThreatModel("l2", 0.1), Randomness(0))
    judged = smoothed(model("mlp").network, classes=3)
    with pytest.raises(NotApplicable, match="only 'smoothing' certifies it"):
        Crown().run(judged, data, ThreatModel("l2", 0.1), Randomness(0))


def test_a_search_for_counterexamples_breaks_nothing_certified():
    data, _ = points(40)
    judged, threat = smoothed(half_space()), ThreatModel("l2", 0.1)
    certified = Smoothing().run(judged, data, threat, Randomness(0)).certified
    assert 10 < int(certified.sum()) < 40
    towards = torch.tensor([1.0, 2.0]) / 5**0.5 * torch.where(data.y == 1, -1.0, 1.0)[:, None]
    for share in (0.3, 0.8, 0.97, 1.0):
        point = threat.project(data.x, data.x + 0.1 * share * towards)
        logits = judged.logits(point)
        lost = logits.gather(1, data.y[:, None])[:, 0] < logits.amax(1)
        assert not (lost & certified).any()


def test_the_soft_vote_has_a_gradient_that_points_across_the_line():
    data, _ = points(8)
    x = data.x.clone().requires_grad_(True)
    logits = SmoothedClassifier(half_space(4.0), SIGMA).soft(64)(x)
    assert torch.allclose(logits.exp().sum(1), torch.ones(8), atol=1e-5)
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert torch.allclose(slope[:, 1] / slope[:, 0], torch.full((8,), 2.0), atol=1e-3)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: SmoothedClassifier(half_space(), 0.0), "positive sigma"),
        (lambda: SmoothedClassifier(half_space(), 0.1, votes=0), "at least one vote"),
        (lambda: SmoothedClassifier(half_space(), 0.1, alpha=1.0), "alpha between"),
        (lambda: Smoothing(samples=0), "one sample"),
        (lambda: Smoothing(alpha=0.0), "alpha between"),
    ],
)
def test_mistakes_are_named(mistake, message):
    with pytest.raises(UserError, match=message):
        mistake()


def test_nan_votes_are_refused():
    base = half_space()
    with torch.no_grad():
        base.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        Smoothing().run(smoothed(base), points(2)[0], ThreatModel("l2", 0.1), Randomness(0))
