"""Optimality against the proven minimum: linear closed forms, planted liars, the command's output."""

import math

import pandas as pd
import pytest
import torch

import bench.cli
import bench.optimality as module
from bench.bracket import Contradiction
from bench.optimality import optimality
from certify.smallest import Smallest
from models.errors import UserError
from tests.builders import exact_distance, images, labelled, random_linear


@pytest.fixture(scope="module")
def linear():
    model = random_linear(3, 5, seed=2)
    return model, labelled(model, 0.4 + 0.2 * images(6, (5,)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_on_a_linear_network_are_measured_against_its_closed_form(linear, norm):
    model, batch = linear
    found = optimality(model, batch.x, batch.y, norm=norm, seconds=10)
    truth = exact_distance(model, batch, norm).numpy()
    samples = found.samples
    # Where the box is out of reach the closed form is the minimum.
    near = truth < 0.35
    assert near.any()
    assert (samples["lower"][near] <= truth[near] * (1 + 1e-6)).all()
    assert (truth[near] <= samples["upper"][near] * (1 + 1e-6)).all()
    assert samples["closed"].all()
    for name in found.attacks:
        assert (samples[name].dropna() >= samples["lower"][samples[name].notna()]).all()
    table = found.table().set_index("attack")
    assert list(table.index) == ["deepfool", "fab", "fmn", "cw", "minimum-norm", "proven minimum"]
    assert table.loc["fab", "within 1 %"] == "100 %"
    assert table.loc["proven minimum", "optimality"] == "1"


def planted(lower, upper):
    def answer(model, batch, threat, randomness, **options):
        one = torch.ones(1, dtype=torch.float64)
        return Smallest(lower * one, upper * one, batch.x, torch.tensor([lower == upper]), 0 * one)

    return answer


def test_the_table_is_what_its_columns_say(linear, monkeypatch):
    model, batch = linear
    monkeypatch.setattr(module, "smallest_perturbations", planted(0.5, 0.8))
    monkeypatch.setattr(
        module,
        "_attacked",
        lambda *rest: (
            {
                "fab": torch.tensor([0.8, 0.805, 1.0, math.nan], dtype=torch.float64),
                "fmn": torch.full((4,), 0.505, dtype=torch.float64),
            },
            batch.x[:4],
        ),
    )
    wrong = batch.y[:4].clone()
    monkeypatch.setattr(module, "vector_norm", lambda x, norm: torch.tensor([2.0]))
    found = optimality(model, batch.x[:4], wrong, attacks=["fab", "fmn"])
    fab, fmn, proven = found.table().to_dict("records")
    mean = (0.8 + 0.805 + 1.0) / 3
    assert fab["fooled"] == "3 of 4"
    assert fab["mean distance"] == f"{mean:.4f}"
    assert fab["optimality"] == f"[{mean / 0.8:.3f}, {mean / 0.5:.3f}]"
    assert fab["within 1 %"] == "[0, 50] %"
    assert fab["rho_adv"] == f"{mean / 2:.4f}"
    assert fmn["within 1 %"] == "100 %"
    assert proven["mean distance"] == "[0.5000, 0.8000]"
    assert proven["rho_adv"] == "[0.2500, 0.4000]"


def test_an_attack_below_the_proof_is_a_contradiction(linear, monkeypatch):
    model, batch = linear
    monkeypatch.setattr(module, "smallest_perturbations", planted(5.0, 5.0))
    with pytest.raises(Contradiction, match=r"attack deepfool breaks sample 0 at .* below its proven least"):
        optimality(model, batch.x[:1], batch.y[:1])


def test_clean_errors_are_rows_and_in_no_mean(linear):
    model, batch = linear
    wrong = batch.y.clone()
    wrong[0] = (wrong[0] + 1) % 3
    found = optimality(model, batch.x[:3], wrong[:3], attacks=["deepfool"], seconds=5)
    assert found.samples["correct"].tolist() == [False, True, True]
    assert found.samples["upper"][0] == 0
    assert found.table()["fooled"][0] == "2 of 2"


def test_an_attack_that_looks_for_no_minimum_is_refused(linear):
    model, batch = linear
    with pytest.raises(
        UserError,
        match="looks for no smallest perturbation: choose from boundary, brendel-bethge",
    ):
        optimality(model, batch.x, batch.y, attacks=["pgd"])


def test_the_command_prints_the_table_and_writes_a_row_an_image(tmp_path, capsys):
    line = ["smallest", "conv-small+polytope", "--limit", "2", "--attack", "fab", "--seconds", "1"]
    assert bench.cli.main([*line, "--out", str(tmp_path / "rows.csv")]) == 0
    out, err = capsys.readouterr()
    assert "conv-small+polytope, linf, 2 of 2 images classified correctly" in out
    assert out.splitlines()[-1].split()[:2] == ["proven", "minimum"]
    assert err.startswith("[1/2] image 0: [0.")
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["index"].tolist() == [0, 500]
    assert (rows["lower"] >= 0).all()
    assert (rows["lower"] <= rows["upper"]).all()
    assert (rows["upper"] <= rows["fab"]).all()


@pytest.mark.slow
def test_an_interrupt_leaves_the_rows_of_finished_images(tmp_path, capsys, monkeypatch):
    whole = module.smallest_perturbations

    def until_the_third(model, batch, *rest, **options):
        if int(batch.index) == 2:
            raise KeyboardInterrupt
        return whole(model, batch, *rest, **options)

    monkeypatch.setattr(module, "smallest_perturbations", until_the_third)
    line = ["smallest", "conv-small+polytope", "--limit", "3", "--attack", "fab", "--seconds", "1"]
    assert bench.cli.main([*line, "--out", str(tmp_path / "rows.csv")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "stopped: the rows of finished images are kept where --out names a file"
    )
    assert pd.read_csv(tmp_path / "rows.csv")["index"].tolist() == [0, 500]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "error: --limit must be at least 1, not 0"),
        (["--seconds", "0"], "error: a time limit of 0 s a sample: give a positive, finite one"),
        (["--tolerance", "2"], "error: a tolerance of 2: give a share of the distance between 0 and 1"),
        (["--norm", "l0"], "error: no smallest perturbation is proved in 'l0': choose linf, l2, l1"),
        (["--attack", "pgd"], "error: attack 'pgd' looks for no smallest perturbation"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    line = ["smallest", "conv-small+polytope", "--limit", "1"]
    assert bench.cli.main([*line, *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
