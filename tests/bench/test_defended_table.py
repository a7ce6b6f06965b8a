"""Naive beside adaptive: the pairing of records, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from bench.catalog import Catalog, Entry
from bench.defended_table import defended
from bench.plan import make_plan
from bench.record import Record
from bench.spec import MatrixSpec
from models.cost import Cost
from tests.bench.builders import attacked, catalog, cell, outcomes


def with_fronts() -> Catalog:
    known = catalog()
    fronts = {
        name: Entry(name=name, summary=name, paper="-", at_input=True, defaults={"bits": 1})
        for name in ("squeeze", "blur")
    }
    ensemble = Entry(
        name="together", summary="-", paper="-", norms=("linf",), models=("sources",), ensemble=True
    )
    return known.model_copy(
        update={
            "defenses": known.defenses | fronts,
            "attacks": known.attacks | {"together": ensemble},
        }
    )


def handed(
    target: str, source: str, distances: list[float | None], clean: list[bool] | None = None
) -> Record:
    """The record of examples made on `source` and tried on dense behind `target`."""
    judged = cell("transfer", defense=target, model="dense", chosen={"source": source})
    return attacked(judged, distances, clean=clean)


def test_naive_and_adaptive_by_hand() -> None:
    clean = [True, True, True, True, False]
    records = [
        handed("squeeze", "dense", [None, 0.1, None, None, None], clean),
        attacked(cell("step", defense="squeeze", model="dense"), [None, None, 0.05, 0.1, None], clean=clean),
        attacked(cell("step", model="dense"), [0.1, 0.1, None, None, None]),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    (row,) = table.frame.to_dict("records")
    assert (row["model"], row["defense"], row["n"]) == ("dense", "squeeze", 5)
    # Clean 4 of 5; the handed-over points break sample 1; the aware attack breaks 2 and 3 besides.
    assert [row[name] for name in ("clean", "naive", "adaptive", "illusion")] == pytest.approx(
        [0.8, 0.6, 0.2, 0.4]
    )
    assert row["undefended"] == pytest.approx(0.6)
    assert table.name == "defended-linf-0.1"


def test_only_the_networks_own_weights_count_as_naive() -> None:
    """A network trained otherwise, or the model behind another front, is no source of the naive score."""
    records = [
        handed("hull+squeeze", "dense", [0.1, 0.1]),
        handed("hull+squeeze", "dense+hull+blur", [0.1, 0.1]),
        handed("hull+squeeze", "dense+hull", [None, 0.1]),
        handed("hull", "dense", [0.1, 0.1]),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    (row,) = table.frame.to_dict("records")
    assert (row["defense"], row["naive"], row["adaptive"]) == ("hull+squeeze", 0.5, 0.0)


def test_adaptive_is_judged_on_the_samples_of_the_naive_score() -> None:
    records = [
        handed("squeeze", "dense", [None, None]),
        attacked(cell("step", defense="squeeze", model="dense", images=4), [None, None, 0.1, 0.1]),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    assert table.frame["adaptive"].tolist() == [1.0]


def test_models_without_a_front_have_no_such_table() -> None:
    assert defended(outcomes(handed("none", "pooled", [0.1, None])), with_fronts()) == []


def spec(**changes: object) -> MatrixSpec:
    given = {
        "name": "matrix",
        "models": ("dense",),
        "defenses": ("none", "+*"),
        "attacks": ("transfer", "together"),
        "certificates": (),
        "sources": (),
        "threats": [{"norm": "linf", "eps": 0.1}],
        "images": dict.fromkeys(Cost, 5),
    }
    return MatrixSpec.model_validate(given | changes)


def test_the_plan_hands_every_fronted_model_the_examples_of_its_own_weights() -> None:
    plan = make_plan(spec(), with_fronts(), lambda name: f"hash of {name}")
    found = {(cell.defended, cell.judge.sources) for cell in plan.cells}
    assert found == {("dense+blur", ("dense",)), ("dense+squeeze", ("dense",))}


def test_an_ensemble_keeps_to_the_sources_that_are_named() -> None:
    plan = make_plan(spec(sources=("pooled", "dense+hull")), with_fronts(), lambda name: f"hash of {name}")
    for cell_ in plan.cells:
        if cell_.judge.name == "together":
            assert cell_.judge.sources == ("pooled", "dense+hull")
