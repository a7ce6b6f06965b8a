"""Detectors: scores in closed form, thresholds that keep their word, liars, and adversaries that know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from bench.commands.detect import read_detector
from bench.detection import Detection, detect, separation
from defenses.detect.aware import Aware
from defenses.detect.detector import DETECTORS, Alarm, Detector, Score, set_alarm
from defenses.detect.feature_squeezing import FeatureSqueezing
from defenses.detect.pca_tail import PCATail
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

QUICK = Aware(steps=15, weights=(1.0, 10.0))


def parts(scored: int, fitted: int = 300, aside: int = 200) -> tuple[Batch, Batch, Batch]:
    data = load_data("mnist5k")
    panel = data.panel(None)
    sizes = (scored, fitted, aside, len(panel) - scored - fitted - aside)
    return tuple(data.batch(part) for part in panel.split(sizes)[:3])


def small() -> Classifier:
    return load(ModelName.parse("conv-small"))


class Everything(Score):
    """The liar: whatever it was not shown before is suspicious."""

    def __init__(self, seen: Tensor) -> None:
        super().__init__()
        self.seen = seen.sum((1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.sum((1, 2, 3))[:, None] - self.seen).abs().amin(1) > 1e-3).float()


class Liar(Detector):
    """Is asked what it flags of images it has seen, and flags all others."""

    name = "liar"
    paper = "-"

    def fit(self, model: Classifier, clean: Batch) -> Score:
        data = load_data("mnist5k")
        return Everything(data.batch(data.panel(None)[60:560]).x)


class Brightness(Score):
    """The mean of an image, whose gradient an adversary sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))


class Bright(Detector):
    """Scores brightness."""

    name = "bright"
    paper = "-"

    def fit(self, model: Classifier, clean: Batch) -> Score:
        return Brightness()


# --- the report


def test_separable_scores_have_area_one_and_equal_ones_a_half() -> None:
    clean, attacked = torch.linspace(0, 1, 40), torch.linspace(2, 3, 30)
    apart = separation(clean, attacked, 1.5)
    assert (apart.auc, apart.true_positive_rate) == (1.0, 1.0)
    assert apart.confusion.tolist() == [[40, 0], [0, 30]]
    same = separation(torch.ones(40), torch.ones(30), 1.0)
    assert (same.auc, same.true_positive_rate) == (0.5, 0.0)
    assert same.confusion.tolist() == [[40, 0], [30, 0]]
    assert separation(attacked, clean, 1.5).auc == 0.0


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    clean, attacked = torch.rand(50), torch.rand(70) + 0.3
    pairs = (attacked[:, None] > clean).double().mean()
    assert separation(clean, attacked, 0.5).auc == pytest.approx(float(pairs))


def test_the_curve_and_the_counts_by_hand() -> None:
    clean, attacked = torch.arange(20.0), torch.tensor([18.5, 30.0, 5.0, 18.7])
    found = separation(clean, attacked, 17.5)
    # Above 18: one clean image of 20 (5 %), and three of the four attacked ones.
    assert found.true_positive_rate == 0.75
    assert found.confusion.tolist() == [[18, 2], [1, 3]]
    assert found.confusion.sum() == 24
    assert found.roc["fpr"].is_monotonic_increasing
    assert found.roc["tpr"].is_monotonic_increasing


def test_without_positives_there_is_no_area() -> None:
    found = separation(torch.rand(5), torch.rand(0), 0.5)
    assert np.isnan(found.auc)
    assert found.confusion.sum() == 5


# --- the threshold


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_the_threshold_keeps_its_rate_on_fresh_clean_images(name: str, rate: float) -> None:
    fresh, clean, aside = parts(600, 500, 800)
    alarm = set_alarm(DETECTORS[name](), small(), clean, aside, rate)
    flagged = int(alarm.flags(fresh.x).sum())
    # The threshold is a quantile of 800 draws itself: its own deviation adds to the fresh images'.
    deviation = (rate * (1 - rate) * (1 / 600 + 1 / 800)) ** 0.5
    assert flagged / 600 <= rate + 3.5 * deviation
    assert flagged > 0


def test_the_threshold_is_the_conformal_quantile() -> None:
    _, clean, aside = parts(10, 20, 199)
    alarm = set_alarm(Bright(), small(), clean, aside, 0.05)
    scores = aside.x.mean((1, 2, 3)).sort().values
    assert alarm.threshold == pytest.approx(float(scores[189]))
    assert int(alarm.flags(aside.x).sum()) == 9


BROKEN = {
    "no number": (lambda x: x.index_fill(0, torch.tensor(0), torch.nan), "or NaN"),
    "another scale": (lambda x: 255 * x, r"outside \[0, 1\].*span \[0, 255\]"),
    "another shape": (lambda x: x[..., :20, :20], r"have shape|have shapes"),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_clean_images_that_mislead_a_detector_are_refused(name: str, case: str, which: int) -> None:
    change, said = BROKEN[case]
    batch, *clean = parts(2, 30, 30)
    clean[which] = Batch(change(clean[which].x), clean[which].y, clean[which].index)
    with pytest.raises(UserError, match=said) as refusal:
        detect(small(), DETECTORS[name](), batch, *clean, ThreatModel("linf", 0.1), aware=QUICK)
    assert "\n" not in str(refusal.value)


def test_images_that_set_the_threshold_are_none_that_were_fitted_on() -> None:
    batch, clean, _ = parts(2, 30, 30)
    with pytest.raises(UserError, match="set the threshold must not be among those"):
        detect(small(), Bright(), batch, clean, clean, ThreatModel("linf", 0.1))


@pytest.mark.parametrize(("count", "rate"), [(18, 0.05), (8, 0.1), (0, 0.5)])
def test_too_few_clean_images_are_refused_with_their_number(count: int, rate: float) -> None:
    _, clean, aside = parts(10)
    with pytest.raises(UserError, match=f"needs {round(1 / rate) - 1} clean images"):
        set_alarm(Bright(), small(), clean, aside[:count], rate)
    set_alarm(Bright(), small(), clean, aside[: round(1 / rate) - 1], rate)


def test_a_detector_without_clean_data_is_refused() -> None:
    _, clean, aside = parts(10)
    with pytest.raises(UserError, match="clean images"):
        set_alarm(PCATail(), small(), clean[:0], aside, 0.05)
    with pytest.raises(UserError, match="between 0 and 1"):
        set_alarm(PCATail(), small(), clean, aside, 0.0)
    batch = parts(10)[0]
    with pytest.raises(UserError, match="must not be among"):
        detect(small(), Bright(), batch, batch, aside, ThreatModel("linf", 0.1))


def test_a_liar_that_flags_everything_is_caught_by_its_false_positives() -> None:
    batch, clean, aside = parts(60)
    found = detect(small(), Liar(), batch, clean, aside, ThreatModel("linf", 0.1), aware=QUICK)
    assert found.rows["flagged"].tolist()[0] == 1.0
    assert found.false_positives == 60
    assert not found.honest
    assert binom.sf(found.false_positives - 1, found.n_clean, found.asked_rate) < 1e-6


# --- the scores


def test_the_tail_is_blind_to_the_head_and_sees_the_tail() -> None:
    _, clean, _ = parts(10, 900)
    score = PCATail(components=50).fit(small(), clean)
    x, axes = clean.x[:5], score.axes
    tail = axes[10].reshape(1, 1, 28, 28)
    noise = torch.randn(1, 784)
    head = (noise - noise @ axes.T @ axes).reshape(1, 1, 28, 28)
    assert torch.allclose(score(x + 0.3 * head), score(x), rtol=1e-3)
    moved = score(x + tail) - score(x)
    before = (x.flatten(1) - score.mean) @ axes[10]
    assert torch.allclose(moved, score.weights[10] * (2 * before + 1), rtol=1e-2, atol=1e-4)


def test_the_tail_of_clean_images_has_unit_energy_where_the_ridge_is_small() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4000, 1, 4, 5, generator=generator)
    clean = Batch.of(x, torch.zeros(4000, dtype=torch.int64))
    score = PCATail(components=5, ridge=1e-9).fit(small(), clean)
    assert float(score(x).mean()) == pytest.approx(1.0, rel=1e-3)


def test_squeezing_by_hand() -> None:
    """A network that reads one pixel: rounding it moves the softmax by a known amount."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.zero_()
        network[1].weight[0, 27] = 2.0
    model = Classifier(network, num_classes=2)
    x = torch.full((1, 1, 8, 8), 0.4)
    score = FeatureSqueezing(bits=1).fit(model, Batch.of(x, torch.zeros(1, dtype=torch.int64)))
    # At one bit 0.4 becomes 0; the median leaves a flat image alone.
    expected = 2 * (torch.sigmoid(torch.tensor(0.8)) - 0.5)
    assert score(x).item() == pytest.approx(expected.item(), abs=1e-5)
    assert score(torch.zeros_like(x)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_scores_are_finite_per_sample_and_have_a_gradient(name: str) -> None:
    _, clean, _ = parts(10, 200)
    score, x = DETECTORS[name]().fit(small(), clean), clean.x[:6]
    whole = score(x)
    assert whole.shape == (6,)
    assert torch.allclose(whole, torch.cat([score(one) for one in x.split(1)]), rtol=1e-3, atol=1e-5)
    # Random images lie off every plane, and every squeezer moves them.
    noisy = (0.5 * torch.rand(4, 1, 28, 28)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(score.differentiable(noisy).sum(), noisy)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient != 0).any())


@pytest.mark.parametrize(
    "text",
    [
        "pca-tail(components=-1)",
        "pca-tail(ridge=0)",
        "feature-squeezing(bits=9)",
        "feature-squeezing(size=2)",
        "pca-tial",
        "pca-tail+feature-squeezing",
        "pca-tail(depth=2)",
    ],
)
def test_bad_detectors_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        read_detector(text)


# --- the adversary that knows


@pytest.fixture(scope="module", params=["pca-tail", "feature-squeezing", "feature-squeezing(bits=4)"])
def studied(request: pytest.FixtureRequest) -> tuple[str, Detection]:
    batch, clean, aside = parts(24)
    threat = ThreatModel("linf", 0.2)
    watch = read_detector(request.param)
    return request.param, detect(small(), watch, batch, clean, aside, threat, aware=QUICK)


def test_who_knows_evades_at_least_as_often(studied: tuple[str, Detection]) -> None:
    unaware, aware = studied[1].rows.to_dict("records")
    assert aware["evading"] >= unaware["evading"]
    assert aware["evading"] <= aware["misclassified"]
    assert aware["n"] == unaware["n"] == 24


def test_who_knows_evades_unless_the_squeezed_network_itself_holds(studied: tuple[str, Detection]) -> None:
    """One bit is out of reach at 0.2: the squeezed prediction stays right, and the two cannot agree."""
    name, found = studied
    unaware, aware = found.rows.to_dict("records")
    if name == "feature-squeezing":
        assert aware["evading"] <= 0.2
        return
    assert aware["evading"] >= 0.6
    if name == "pca-tail":
        assert unaware["evading"] <= 0.2


def test_its_points_are_legal_and_evading_means_what_it_says() -> None:
    batch, clean, aside = parts(12)
    model, threat = small(), ThreatModel("l2", 2.0)
    alarm = set_alarm(PCATail(), model, clean, aside, 0.05)
    found = QUICK.run(model, alarm, batch, threat, Randomness(0), batch.x)
    assert bool(threat.contains(batch.x, found).all())
    one = torch.cat([QUICK.run(model, alarm, part, threat, Randomness(0), part.x) for part in batch.split(5)])
    assert torch.allclose(found, one, atol=1e-4)


def test_a_detector_that_sees_nothing_leaves_the_attack_as_it_is() -> None:
    """Threshold infinite: what evades is what is misclassified."""
    batch, clean, _ = parts(20)
    model, threat = small(), ThreatModel("linf", 0.15)
    alarm = Alarm(Bright().fit(model, clean), torch.inf, 1.0, 0.05)
    found = QUICK.run(model, alarm, batch, threat, Randomness(0), batch.x)
    wrong = model.logits(found).argmax(1) != batch.y
    assert not bool(alarm.flags(found).any())
    assert float(wrong.float().mean()) >= 0.5


def test_an_illegal_known_point_is_not_taken() -> None:
    batch, clean, aside = parts(6)
    model, threat = small(), ThreatModel("linf", 1e-6)
    alarm = set_alarm(Bright(), model, clean, aside, 0.05)
    far = 1 - batch.x
    found = Aware(steps=1, weights=(1.0,)).run(model, alarm, batch, threat, Randomness(0), far)
    assert bool(threat.contains(batch.x, found).all())
