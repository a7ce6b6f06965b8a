"""One cell, run in this process on tiny models: outcomes by closed form, and mistakes that become rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.deepfool import DeepFool
from attacks.fgsm import FGSM
from attacks.universal import Universal
from bench import work
from bench.cell import Cell
from bench.record import COLUMNS, Record
from bench.work import ASIDE, Settings, run_cell
from models.base import Batch, Classifier
from models.data import Dataset
from models.errors import NotApplicable, UserError
from models.threat import Box
from tests.bench.builders import cell
from tests.builders import linear

INPUTS = 6
EPS = 0.1


@dataclass(frozen=True, kw_only=True)
class Planted(Attack):
    """Raises what it is told to."""

    error: Exception
    name = "planted"
    norms = ("linf",)

    def propose(self, model, batch, threat, randomness, fitted):
        raise self.error


class Stochastic(nn.Module):
    """Adds noise to a network's logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + 1e-6 * torch.rand(len(x), 1)


def data(n: int = 20) -> Dataset:
    """n images of 1x2x3 away from the edges of the box."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 190, (n, 1, 2, 3), generator=generator).to(torch.uint8)
    return Dataset("toy", pixels, torch.arange(n) % 3, 3)


def network() -> nn.Sequential:
    """A linear network of three classes on flattened images."""
    generator = torch.Generator().manual_seed(1)
    layer = linear(torch.randn(3, INPUTS, generator=generator), torch.zeros(3)).network
    return nn.Sequential(nn.Flatten(), layer)


def model(net: nn.Module | None = None, classes: int = 3, **more) -> Classifier:
    return Classifier(net or network(), num_classes=classes, name="toy", **more)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs a cell on a planted model, data set and attack."""

    def run(
        of: Cell,
        *,
        judged: Classifier | None = None,
        images: Dataset | None = None,
        attack: Attack | None = None,
        out: Path | None = None,
    ) -> Record:
        monkeypatch.setattr(work, "zoo_member", lambda name, settings: judged or model())
        monkeypatch.setattr(work, "dataset", lambda name, root, download: images or data())
        if attack is not None:
            monkeypatch.setattr(work, "build_attack", lambda cell, settings: attack)
        return run_cell(of, Settings(out=out or tmp_path))

    return run


def of(judge: str = "fgsm", *, images: int = 12, **more) -> Cell:
    return cell(judge, images=images, eps=more.pop("eps", EPS), **more)


def margins(batch: Batch) -> tuple[Tensor, Tensor]:
    """z_y - z_j and ||w_y - w_j||_1 of the linear network, (n, 3) each, in float64."""
    layer = network()[1]
    weight = layer.weight.detach().double()
    z = batch.x.double().flatten(1) @ weight.T
    gap = z.gather(1, batch.y[:, None]) - z
    return gap, (weight[batch.y][:, None] - weight[None]).abs().sum(2)


def test_an_attacks_outcomes_are_the_closed_form(plant) -> None:
    record = plant(of(), attack=FGSM())
    assert record.header.status == "done"
    frame = record.outcomes
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    panel = data().panel(12)
    assert frame["index"].tolist() == panel.tolist()
    assert frame["label"].tolist() == data().labels[panel].tolist()
    batch = data().batch(panel)
    gap, _ = margins(batch)
    gap[torch.arange(12), batch.y] = torch.inf
    clean = (gap.amin(1) > 0).numpy()
    assert 0 < clean.sum() < 12
    np.testing.assert_array_equal(frame["clean"], clean)
    np.testing.assert_allclose(frame["input_norm"], batch.x.flatten(1).amax(1).double())
    # A misclassified sample is broken at distance 0 and is not attacked.
    assert frame.loc[~clean, "success"].all()
    assert (frame.loc[~clean, ["distance", "rmsd", "forward", "backward"]] == 0).all(axis=None)
    # Away from the edges of the box FGSM moves every pixel by eps.
    broken = frame["clean"] & frame["success"]
    assert broken.any()
    np.testing.assert_allclose(frame.loc[broken, ["distance", "rmsd"]], EPS, rtol=1e-4)
    failed = frame["clean"] & ~frame["success"]
    assert frame.loc[failed, ["distance", "rmsd"]].isna().all(axis=None)
    assert (frame["margin"] < 0).equals(frame["success"])
    assert frame["legal"].all()
    assert not frame["certified"].any()
    assert frame["lower"].isna().all()


def test_a_minimal_attacks_distance_is_the_closed_form(plant) -> None:
    attack = DeepFool()
    frame = plant(of("deepfool", eps=None), attack=attack).outcomes
    gap, dual = margins(data().batch(data().panel(12)))
    nearest = torch.where(dual > 0, gap / dual.clamp(min=1e-12), torch.inf).amin(1).numpy()
    clean = frame["clean"].to_numpy()
    assert frame["success"].all()
    reached = frame["distance"].to_numpy()[clean]
    assert (reached >= nearest[clean] * (1 - 1e-5)).all()
    np.testing.assert_allclose(reached, nearest[clean] * (1 + attack.overshoot), rtol=0.02)


def test_a_certificates_outcomes_are_the_closed_form(plant) -> None:
    record = plant(of("ibp", kind="certificate"))
    assert (record.header.status, record.header.confidence) == ("done", 1.0)
    frame = record.outcomes
    batch = data().batch(data().panel(12))
    gap, dual = margins(batch)
    lower = gap - EPS * dual
    lower[torch.arange(12), batch.y] = torch.inf
    np.testing.assert_allclose(frame["lower"], lower.amin(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(frame["certified"], frame["lower"] > 1e-4)
    assert frame["certified"].any()
    assert not frame["certified"].all()
    assert frame[["distance", "rmsd", "margin"]].isna().all(axis=None)
    assert not frame["success"].any()


def test_the_header_says_where_the_numbers_come_from(plant) -> None:
    header = plant(of(), attack=FGSM()).header
    assert header.cell == of()
    assert header.wall_seconds > 0
    assert header.provenance is not None
    assert header.provenance.data_sha256 == data().sha256
    assert header.provenance.torch == torch.__version__
    assert header.provenance.device == "cpu"


def test_a_record_keeps_the_course_of_its_attack_where_it_was_traced(
    plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = plant(of())
    course, frame = record.header.convergence, record.outcomes
    assert course is not None
    assert course.n == frame["clean"].sum()
    assert course.success[-1] == pytest.approx(frame.loc[frame["clean"], "success"].mean(), abs=1e-6)
    # The loss of the points returned is minus their margin; one look before them, the last is the best.
    assert course.loss[-1] >= -frame.loc[frame["clean"], "margin"].mean() - 1e-4
    monkeypatch.setattr(work, "TRACED", 11)
    untraced = plant(of())
    assert untraced.header.convergence is None
    pd.testing.assert_frame_equal(untraced.outcomes, frame)
    assert plant(of("ibp", kind="certificate")).header.convergence is None


def test_fewer_images_are_the_first_rows_of_more(plant) -> None:
    few, many = (plant(of(images=images), attack=FGSM()).outcomes for images in (5, 12))
    # Up to what another batch size does to the rounding of a matrix product.
    pd.testing.assert_frame_equal(few, many.iloc[:5], rtol=1e-5)


ERRORS = {
    "a bug": (RuntimeError("no such thing\nsecond line"), "failed", "RuntimeError: no such thing"),
    "a bug without words": (AssertionError(), "failed", "AssertionError: "),
    "a mistake": (UserError("weights are absent: train them"), "failed", "weights are absent: train them"),
    "memory": (
        MemoryError("too large"),
        "failed",
        "memory ran out on one sample (too large): free some, or take a smaller network",
    ),
    "a refusal": (NotApplicable("no rule for sin"), "skipped", "no rule for sin"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_goes_wrong_is_a_row_with_its_reason(case: str, plant) -> None:
    error, status, reason = ERRORS[case]
    record = plant(of(), attack=Planted(error=error))
    assert (record.header.status, record.header.reason) == (status, reason)
    assert len(record.outcomes) == 0
    assert {name: str(kind) for name, kind in record.outcomes.dtypes.items()} == COLUMNS
    assert record.cell == of()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3)])
def test_a_stop_is_not_made_a_row(stop: BaseException, plant) -> None:
    with pytest.raises(type(stop)):
        plant(of(), attack=Planted(error=stop))


def test_a_certificate_that_does_not_apply_is_a_skip(plant) -> None:
    for judged in (model(Stochastic(network())), model(stochastic=True)):
        record = plant(of("polytope", kind="certificate"), judged=judged)
        assert record.header.status == "skipped"
        assert record.header.reason != ""


class Wrapped(nn.Module):
    """Applies a function to a network's logits."""

    def __init__(self, function) -> None:
        super().__init__()
        self.network, self.function = network(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.network(x))


BAD_MODELS = {
    "NaN": (lambda z: z * torch.nan, "returned NaN"),
    "NaN in one logit": (lambda z: torch.cat([z[:, :2], z[:, 2:] / 0 * 0], 1), "returned NaN"),
    "probabilities": (lambda z: z.softmax(1), "returned probabilities"),
    "a class too many": (lambda z: torch.cat([z, z[:, :1]], 1), "not logits of shape (n, 3)"),
    "a class too few": (lambda z: z[:, :2], "not logits of shape (n, 3)"),
    "one number a sample": (lambda z: z[:, 0], "not logits of shape (n, 3)"),
    "a tuple": (lambda z: (z, z), "returned tuple, not logits of shape (n, 3)"),
}
JUDGES = {
    "fgsm": "attack",
    "deepfool": "attack",
    "pgd": "attack",
    "ibp": "certificate",
    "polytope": "certificate",
}


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_one_clear_line(case: str, judge: str, plant) -> None:
    function, words = BAD_MODELS[case]
    record = plant(of(judge, kind=JUDGES[judge]), judged=model(Wrapped(function)))
    assert record.header.status == "failed"
    assert words in record.header.reason
    assert "model 'toy'" in record.header.reason
    assert "\n" not in record.header.reason


def test_true_logits_that_look_a_little_like_probabilities_are_accepted(plant) -> None:
    assert plant(of(), judged=model(Wrapped(lambda z: z.abs())), attack=FGSM()).header.status == "done"
    assert (
        plant(of(), judged=model(Wrapped(lambda z: z.log_softmax(1))), attack=FGSM()).header.status == "done"
    )


class Broken(Dataset):
    """A data set whose batches are spoilt by `spoil`."""

    spoil = staticmethod(lambda batch: batch)

    def batch(self, index: Tensor) -> Batch:
        return self.spoil(super().batch(index))


def spoilt(spoil) -> Dataset:
    whole = data()
    broken = Broken(whole.name, whole.pixels, whole.labels, whole.num_classes)
    object.__setattr__(broken, "spoil", spoil)
    return broken


def with_one(batch: Batch, value: float) -> Batch:
    x = batch.x.clone()
    x[3, 0, 1, 1] = value
    return replace(batch, x=x)


def with_label(batch: Batch, value: int) -> Batch:
    y = batch.y.clone()
    y[3] = value
    return replace(batch, y=y)


BAD_INPUTS = {
    "NaN": (lambda batch: with_one(batch, torch.nan), "inputs contain NaN or infinity"),
    "infinity": (lambda batch: with_one(batch, torch.inf), "inputs contain NaN or infinity"),
    "above the box": (lambda batch: with_one(batch, 1.001), "but the box is [0, 1]"),
    "below the box": (lambda batch: with_one(batch, -1e-6), "but the box is [0, 1]"),
    "bytes": (lambda batch: replace(batch, x=batch.x * 255), "but the box is [0, 1]"),
    "a label too large": (lambda batch: with_label(batch, 3), "labels span 0..3 but the model has 3 classes"),
    "a negative label": (
        lambda batch: with_label(batch, -1),
        "labels span -1..2 but the model has 3 classes",
    ),
    "a label too few": (lambda batch: replace(batch, y=batch.y[:-1]), "12 inputs but 11 labels"),
}


@pytest.mark.parametrize("judge", ["fgsm", "ibp"])
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_one_clear_line(case: str, judge: str, plant) -> None:
    spoil, words = BAD_INPUTS[case]
    record = plant(of(judge, kind=JUDGES[judge]), images=spoilt(spoil))
    assert record.header.status == "failed"
    assert words in record.header.reason
    assert "\n" not in record.header.reason


def test_a_box_of_another_width_is_respected(plant) -> None:
    record = plant(of(), judged=model(box=Box(0.0, 0.5)), attack=FGSM())
    assert "but the box is [0, 0.5]" in record.header.reason


def test_a_fitted_attack_never_fits_on_what_is_scored(
    plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[Tensor] = []
    fit = Universal.fit

    def noting(self, view, aside, threat, randomness):
        fitted.append(aside.index)
        return fit(self, view, aside, threat, randomness)

    monkeypatch.setattr(Universal, "fit", noting)
    enough = data(ASIDE + 12)
    record = plant(of("universal"), images=enough, attack=Universal(), out=tmp_path)
    assert record.header.status == "done"
    assert len(fitted[0]) == ASIDE
    assert set(fitted[0].tolist()) & set(record.outcomes["index"]) == set()
    assert [path.stem for path in (tmp_path / "artifacts").iterdir()] == [record.cell.id]
    few = plant(of("universal"), images=data(ASIDE + 11), attack=Universal(), out=tmp_path)
    assert few.header.status == "failed"
    assert f"needs {ASIDE} images beside the 12 scored: lower --limit" in few.header.reason


def test_a_device_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert work.pick_device("auto") == work.pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="--device cuda: no CUDA device"):
        work.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [work.pick_device(wanted) for wanted in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]


def test_a_record_keeps_what_made_the_model_suspicious(plant) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x * 4).round() / 4)

    assert "zero gradient" in plant(of("pgd"), judged=model(Rounded())).header.signs
    assert "zero gradient" not in plant(of("pgd"), judged=model()).header.signs
