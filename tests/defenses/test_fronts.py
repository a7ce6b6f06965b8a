"""Every defence at the input keeps its contract, and each is what its closed form says."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import pywt
import torch
from torch import Tensor, nn

from attacks.pgd import PGD
from bench.registered import catalog
from certify.smoothing import Smoothing
from defenses.inputs import INPUT_DEFENSES, defended
from defenses.jpeg import JPEG
from defenses.median import Median
from defenses.pca import PCA, Projected
from defenses.principal_components import PrincipalComponents, fit, shipped
from defenses.random_resize import RandomResize
from defenses.smoothing import VoteOverNoise
from defenses.sparsify import DCT, Sparsified, Sparsify, cosine_basis, wavelet_step
from defenses.total_variation import Flattened, TotalVariation
from defenses.zoo import ModelName, load
from models.architecture import MODELS
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.smoothed import SmoothedClassifier
from models.threat import ThreatModel

LENET = MODELS["lenet"]
FRONTS = sorted(INPUT_DEFENSES)


def digits(n: int) -> Batch:
    data = load_data("mnist5k")
    return data.batch(data.panel(None)[:n])


def linear(seed: int = 0) -> Classifier:
    """A linear classifier of 28 x 28 images into ten classes with generic weights."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(10, 784, generator=generator))
    return Classifier(network, num_classes=10)


@pytest.mark.parametrize("name", FRONTS)
def test_a_front_keeps_shape_and_range(name: str) -> None:
    x = torch.cat([digits(6).x, torch.rand(4, 1, 28, 28), torch.ones(1, 1, 28, 28)])
    seen = INPUT_DEFENSES[name]().front(LENET)(x)
    assert seen.shape == x.shape
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 1


@pytest.mark.parametrize("name", FRONTS)
def test_two_passes_agree_unless_declared(name: str) -> None:
    defense, x = INPUT_DEFENSES[name](), digits(8).x
    model = defended(linear(), defense, LENET, name)
    assert model.stochastic is defense.stochastic
    assert torch.equal(model.logits(x), model.logits(x)) is not defense.stochastic


@pytest.mark.parametrize("name", FRONTS)
def test_a_sample_does_not_see_its_batch(name: str) -> None:
    """Each judge begins with eval(), from which on a random front counts the looks at each image."""
    model, x = defended(linear(), INPUT_DEFENSES[name](), LENET, name), digits(9).x
    for _ in range(2):
        alone = torch.cat([model.eval().logits(one) for one in x.split(1)])
        assert torch.allclose(model.eval().logits(x), alone, atol=1e-4)
        assert torch.allclose(model.eval().logits(x.flip(0)).flip(0), alone, atol=1e-4)
        torch.rand(7)


@pytest.mark.parametrize("name", FRONTS)
@pytest.mark.parametrize("inner", ["bit-depth", "total-variation"])
def test_adversaries_get_a_finite_gradient_through_any_two(name: str, inner: str) -> None:
    once = defended(linear(), INPUT_DEFENSES[inner](), LENET, inner)
    model = defended(once, INPUT_DEFENSES[name](), LENET, f"{inner}+{name}")
    x = digits(5).x.requires_grad_(True)
    logits = model.differentiable_logits(x)
    assert logits.shape == model.logits(x).shape
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient != 0).flatten(1).any(1).all())


@pytest.mark.parametrize("name", [name for name in FRONTS if name != "smoothing"])
def test_the_surrogate_agrees_with_the_front(name: str) -> None:
    defense, x = INPUT_DEFENSES[name](), digits(5).x
    front = defense.front(LENET)
    surrogate = defense.surrogate(front)
    if surrogate is not None:
        assert torch.allclose(surrogate(x), front(x), atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "sparsify(keep=0)",
        "sparsify(keep=1.5)",
        "sparsify(basis=bior2.2)",
        "sparsify(basis=fourier)",
        "jpeg(quality=0)",
        "median(size=4)",
        "total-variation(weight=-1)",
        "total-variation(steps=0)",
        "random-resize(smallest=0)",
        "smoothing(sigma=0)",
        "smoothing(votes=0)",
        "smoothing(votes=20)",
        "pca(components=101)",
    ],
)
def test_bad_parameters_are_refused_before_anything_is_read(text: str) -> None:
    with pytest.raises(UserError, match=text.partition("(")[0]):
        ModelName.parse(f"lenet+{text}").fronts()


# --- sparsify


@pytest.mark.parametrize("basis", ["haar", "db5", "sym4", DCT])
def test_the_transform_is_orthonormal(basis: str) -> None:
    sparse = Sparsified((1, 28, 28), 1.0, basis)
    units = torch.eye(784).reshape(784, 1, 28, 28)
    matrix = sparse.coefficients(units).flatten(1)
    assert torch.allclose(matrix @ matrix.T, torch.eye(784), atol=1e-4)
    x = digits(3).x
    assert torch.allclose(sparse.images(sparse.coefficients(x)), x, atol=1e-5)


@pytest.mark.parametrize("basis", ["haar", "db5"])
def test_one_level_is_pywavelets_up_to_order_and_sign(basis: str) -> None:
    signal = torch.rand(28, dtype=torch.float64)
    ours = wavelet_step(28, basis) @ signal
    theirs = pywt.dwt(signal.numpy(), basis, mode="periodization")
    for mine, band in zip(ours.split(14), theirs, strict=True):
        assert torch.allclose(mine.abs().sort().values, torch.from_numpy(band).abs().sort().values)


def test_the_cosine_basis_diagonalises_the_path() -> None:
    """Strang 1999: the DCT-II's vectors are the eigenvectors of the path graph's Laplacian."""
    path = torch.diag(torch.tensor([1.0, *[2.0] * 6, 1.0], dtype=torch.float64))
    path -= torch.diag(torch.ones(7, dtype=torch.float64), 1) + torch.diag(torch.ones(7).double(), -1)
    rows = cosine_basis(8)
    found = rows @ path @ rows.T
    values = 2 - 2 * torch.cos(math.pi * torch.arange(8, dtype=torch.float64) / 8)
    assert torch.allclose(found, torch.diag(values), atol=1e-12)


@pytest.mark.parametrize("basis", ["haar", "db5", DCT])
def test_sparsifying_twice_is_sparsifying_once(basis: str) -> None:
    sparse, x = Sparsified((1, 28, 28), 0.05, basis), digits(6).x
    once = sparse(x)
    assert torch.allclose(sparse(once), once, atol=1e-5)
    assert int((sparse.coefficients(once).abs() > 1e-4).sum(dim=(1, 2, 3)).max()) <= sparse.kept == 39
    # The nearest K-sparse image: what is lost is exactly the tail's energy.
    tail = sparse.coefficients(x).flatten(1).abs().sort(descending=True).values[:, sparse.kept :]
    assert torch.allclose((x - once).flatten(1).norm(dim=1), tail.norm(dim=1), atol=1e-4)


def test_keeping_all_is_the_identity() -> None:
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(Sparsify(keep=1.0).front(LENET)(x), x)


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.3])
def test_the_output_distortion_of_a_linear_map_falls_as_the_share_kept(keep: float) -> None:
    """Gopalakrishnan et al. 2018: of <w, e>, e = eps sign(w), <w, P e> is left, about K / N for generic w."""
    sparse, x = Sparsified((1, 28, 28), keep, "db5"), digits(20).x
    w = torch.randn(400, 784, generator=torch.Generator().manual_seed(1))
    flat = sparse.coefficients(x).flatten(1)
    supports = torch.zeros_like(flat).scatter(1, flat.abs().topk(sparse.kept, 1).indices, 1.0)
    weights = sparse.coefficients(w.reshape(-1, 1, 28, 28)).flatten(1)
    moves = sparse.coefficients(w.sign().reshape(-1, 1, 28, 28)).flatten(1)
    through = torch.einsum("wd,sd,wd->sw", weights, supports, moves).mean()
    assert float(through / w.abs().sum(1).mean()) == pytest.approx(keep, rel=0.08)


def test_the_gradient_is_the_projection_on_what_is_kept() -> None:
    sparse, x = Sparsified((1, 28, 28), 0.03, DCT), digits(1).x
    w = torch.randn(1, 1, 28, 28)
    moved = x.clone().requires_grad_(True)
    (sparse(moved) * w).sum().backward()
    flat = sparse.coefficients(x).flatten(1)
    support = torch.zeros_like(flat).scatter(1, flat.abs().topk(sparse.kept, 1).indices, 1.0)
    kept = sparse.images((sparse.coefficients(w).flatten(1) * support).reshape(w.shape))
    assert torch.allclose(moved.grad, kept, atol=1e-5)


# --- jpeg, median, total variation, random resize


def test_jpeg_keeps_flat_images_and_loses_less_at_higher_quality() -> None:
    flat = torch.tensor([0.0, 51 / 255, 1.0])[:, None, None, None].expand(3, 1, 28, 28)
    assert torch.allclose(JPEG().front(LENET)(flat), flat, atol=2 / 255)
    x = digits(10).x
    lost = [float((JPEG(quality=q).front(LENET)(x) - x).abs().mean()) for q in (10, 50, 95)]
    assert lost[0] > lost[1] > lost[2] > 0
    colours = torch.rand(2, 3, 16, 16)
    assert JPEG().front(LENET)(colours).shape == colours.shape


def test_jpeg_hands_the_identity_backward() -> None:
    x = digits(2).x.requires_grad_(True)
    front = JPEG().front(LENET)
    JPEG().surrogate(front)(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_the_median_outvotes_a_lone_pixel_and_keeps_an_edge() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:] = 1.0
    front = Median().front(LENET)
    assert torch.equal(front(x), x)
    spoilt = x.clone()
    spoilt[0, 0, 2, 1], spoilt[0, 0, 5, 6] = 1.0, 0.0
    assert torch.equal(front(spoilt), x)


def test_the_median_by_hand() -> None:
    x = torch.rand(1, 1, 5, 5)
    seen = Median().front(LENET)(x)
    for row in range(1, 4):
        for column in range(1, 4):
            window = x[0, 0, row - 1 : row + 2, column - 1 : column + 2]
            assert float(seen[0, 0, row, column]) == float(window.flatten().sort().values[4])


def test_total_variation_of_a_step_in_closed_form() -> None:
    """Each side of a step moves by weight / its width towards the other; at the end they meet."""
    x = torch.zeros(1, 1, 6, 8)
    x[..., 5:] = 1.0
    for weight in (0.3, 1.2, 9.0):
        flat = Flattened(weight, 400)(x)
        left, right = min(weight / 5, 3 / 8), max(1 - weight / 3, 3 / 8)
        expected = torch.tensor([left] * 5 + [right] * 3).expand_as(x)
        assert torch.allclose(flat, expected, atol=2e-3)


def test_total_variation_is_never_worse_than_any_rival() -> None:
    x, weight = digits(3).x, 0.1

    def energy(u: Tensor) -> Tensor:
        varied = u.diff(dim=-1).abs().sum((1, 2, 3)) + u.diff(dim=-2).abs().sum((1, 2, 3))
        return (u - x).square().sum((1, 2, 3)) / 2 + weight * varied

    best = Flattened(weight, 200)(x)
    rivals = [x, x.mean((2, 3), keepdim=True).expand_as(x), best + 0.01 * torch.randn_like(x), 0.98 * best]
    for rival in rivals:
        assert bool((energy(best) <= energy(rival) + 1e-4).all())
    assert bool((energy(TotalVariation(weight=weight).front(LENET)(x)) <= energy(x)).all())
    assert torch.equal(TotalVariation(weight=0.0).front(LENET)(x), x)


def test_random_resize_moves_a_block_of_ones() -> None:
    seen = RandomResize(smallest=0.5).front(LENET)(torch.ones(200, 1, 28, 28))
    rows, columns = (seen.amax(3) > 0).sum(2).flatten(), (seen.amax(2) > 0).sum(2).flatten()
    assert torch.equal(rows, columns)
    assert torch.equal(seen.sum((1, 2, 3)), (rows * columns).float())
    assert set(rows.tolist()) >= set(range(16, 27))
    assert int(rows.min()) >= 14
    x = digits(4).x
    assert torch.allclose(RandomResize(smallest=1.0).front(LENET)(x), x, atol=1e-5)


def test_the_looks_at_an_image_are_counted_apart_from_all_others() -> None:
    """Alone, among others, and twice in one batch: the k-th look is the same, and no two looks are."""
    front, x = RandomResize(smallest=0.5).front(LENET).eval(), digits(5).x
    first = [front(x[:1]) for _ in range(4)]
    assert all(not torch.equal(a, b) for a, b in combinations(first, 2))
    front.eval()
    front(x[1:])
    mixed = [front(x)[:1], front(torch.cat([x[2:3], x[:1], x[:1], x[1:2]]))]
    assert torch.equal(mixed[0], first[0])
    assert torch.equal(mixed[1][1:3], torch.cat(first[1:3]))
    front.eval()
    assert torch.equal(front(x[:1]), first[0])


def test_looks_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defenses.random_resize.REMEMBERED", 3)
    front, x = RandomResize(smallest=0.5).front(LENET).eval(), digits(6).x
    first = front(x[:1])
    front(x[1:])
    assert len(front._looks) == 3
    assert torch.equal(front(x[:1]), first)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_on_a_random_front_depends_on_the_seed_alone(norm: str) -> None:
    model = defended(load(ModelName.parse("conv-small")), RandomResize(), LENET, "resized")
    attack, threat, batch = (
        PGD(steps=5, restarts=2),
        ThreatModel(norm, {"linf": 0.1, "l2": 1.0}[norm]),
        digits(12),
    )
    runs = []
    for size in (12, 12, 5, 1):
        torch.manual_seed(size)
        runs.append(attack.run(model, batch, threat, Randomness(0), batch_size=size))
    assert torch.equal(runs[0].x_adv, runs[1].x_adv)
    assert torch.equal(runs[0].margin, runs[1].margin)
    if norm == "linf":
        # Sign steps land on the same bits in a batch of any size, but for a gradient near zero.
        for run in runs[2:]:
            assert float((run.x_adv == runs[0].x_adv).flatten(1).all(1).double().mean()) >= 0.75


# --- smoothing


def test_the_vote_stands_around_the_network_and_its_inner_fronts() -> None:
    inner = load(ModelName.parse("lenet+bit-depth(bits=2)"))
    outer = load(ModelName.parse("lenet+bit-depth(bits=2)+smoothing(sigma=0.3,votes=30)"))
    assert isinstance(outer.network, SmoothedClassifier)
    x = digits(4).x
    assert torch.equal(outer.logits(x), SmoothedClassifier(inner.network, 0.3, 30)(x))


def test_the_fewest_votes_that_are_let_pass_are_the_fewest_that_ever_decide() -> None:
    count = torch.tensor([[20, 0], [21, 0]])
    voting = VoteOverNoise(votes=21).around(Classifier(nn.Flatten(), num_classes=2), LENET)[0]
    assert isinstance(voting, SmoothedClassifier)
    assert voting.abstains(count).tolist() == [True, False]
    with pytest.raises(UserError, match="smoothing with 20 votes always abstains at level 1e-06: give 21"):
        VoteOverNoise(votes=20)
    with pytest.raises(UserError, match="give 8 votes or more"):
        SmoothedClassifier(nn.Flatten(), 0.1, 7, alpha=0.01)


def test_a_front_before_the_vote_has_no_certificate() -> None:
    batch, threat = digits(2), ThreatModel("l2", 0.1)
    for name, applies in (("smoothing(votes=30)", True), ("smoothing(votes=30)+median", False)):
        model = load(ModelName.parse(f"conv-small+gaussian-noise+{name}"))
        if applies:
            assert bool(Smoothing(samples=200).run(model, batch, threat, Randomness(0)).certified.any())
        else:
            with pytest.raises(NotApplicable):
                Smoothing(samples=200).run(model, batch, threat, Randomness(0))


def test_smoothing_certifies_in_l2_less_and_less() -> None:
    model, batch = load(ModelName.parse("conv-small+gaussian-noise+smoothing(sigma=0.5)")), digits(20)
    proved = [
        int(Smoothing(samples=400).run(model, batch, ThreatModel("l2", eps), Randomness(0)).certified.sum())
        for eps in (0.25, 1.0, 4.0)
    ]
    assert proved[0] >= 15
    assert proved[0] >= proved[1] >= proved[2] == 0


def test_the_vote_of_a_constant_network_is_certain() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    model = defended(Classifier(network, num_classes=3), VoteOverNoise(votes=40), LENET, "constant")
    logits = model.logits(digits(2).x)
    assert torch.allclose(logits.exp(), torch.tensor([[1 / 43, 41 / 43, 1 / 43]]).expand(2, 3))


# --- pca


def test_the_shipped_axes_are_orthonormal_and_fall_in_variance() -> None:
    basis = shipped()
    assert torch.allclose(basis.axes @ basis.axes.T, torch.eye(100).double(), atol=1e-9)
    assert bool((basis.variances.diff() <= 0).all())
    images = digits(1000).x.flatten(1).double()
    along = ((images - basis.mean) @ basis.axes.T).square().mean(0)
    # The panel was not fitted on: its variances are near the fitted ones, and add up to most of them all.
    assert float(along[:10].sum() / basis.variances[:10].sum()) == pytest.approx(1, abs=0.1)
    assert float(along.sum() / (images - basis.mean).square().sum(1).mean()) > 0.9


def test_all_components_are_the_identity_and_few_lose_the_tail_of_the_spectrum() -> None:
    images = torch.rand(60, 1, 5, 4)
    whole = fit(images, 20)
    assert torch.allclose(Projected(whole)(images), images, atol=1e-5)
    lost = (Projected(whole.first(6))(images) - images).square().sum((1, 2, 3)).mean()
    assert float(lost) == pytest.approx(float(whole.variances[6:].sum()), rel=1e-4)


def test_a_perturbation_off_the_plane_changes_nothing() -> None:
    basis, x = shipped().first(25), digits(3).x
    noise = torch.randn(3, 784).double()
    away = (noise - noise @ basis.axes.T @ basis.axes).float().reshape(x.shape)
    plane = Projected(basis)
    assert torch.allclose(plane(x + away), plane(x), atol=1e-4)
    assert torch.allclose(plane(plane(x)), plane(x), atol=1e-5)
    assert not torch.allclose(plane(x), x, atol=0.1)


def test_pca_refuses_what_is_no_digit() -> None:
    refused = catalog().defenses["pca"].refuses
    assert "lenet" not in refused
    assert all(MODELS[name].input_shape != (1, 28, 28) or MODELS[name].data != "mnist" for name in refused)
    assert PCA().refuses(LENET) is None
    assert isinstance(shipped(), PrincipalComponents)
