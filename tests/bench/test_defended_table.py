"""Naive beside adaptive: the pairing of records, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bench.catalog import Catalog, Entry
from bench.defended_table import defended
from bench.plan import make_plan
from bench.record import Record
from bench.render import formatted
from bench.spec import MatrixSpec
from bench.work import Settings, named_attack, run_cell
from defenses.zoo import ModelName, load
from models.base import margin
from models.cost import Cost
from models.data import load_data
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.bench.builders import attacked, catalog, cell, outcomes, proved


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


def test_the_naive_score_is_the_worst_over_all_attacks_that_do_not_know() -> None:
    def unaware(attack: str, distances: list[float | None]) -> Record:
        chosen = {"source": "dense", "attack": attack}
        return attacked(cell("transfer", defense="squeeze", model="dense", chosen=chosen), distances)

    records = [
        handed("squeeze", "dense", [None, 0.1, None, None]),
        unaware("step", [0.05, None, None, None]),
        unaware("step(steps=3)", [0.05, 0.1, None, None]),
        attacked(cell("step", defense="squeeze", model="dense"), [None, None, 0.1, None]),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    (row,) = table.frame.to_dict("records")
    assert (row["naive"], row["adaptive"], row["illusion"]) == (0.5, 0.25, 0.25)


def test_only_the_networks_own_weights_count_as_naive() -> None:
    """A network trained otherwise, or the model behind another front, is no source of the naive score."""
    records = [
        handed("hull+squeeze", "dense", [0.1, 0.1]),
        handed("hull+squeeze", "dense+hull+blur", [0.1, 0.1]),
        handed("hull+squeeze", "dense+hull", [None, 0.1]),
        attacked(cell("step", defense="hull+squeeze", model="dense"), [None, None]),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    (row,) = table.frame.to_dict("records")
    assert (row["defense"], row["naive"], row["adaptive"]) == ("hull+squeeze", 0.5, 0.0)


def test_a_defence_that_trains_is_scored_by_examples_of_the_untrained_architecture() -> None:
    records = [
        handed("hull", "dense", [None, 0.1, None, None]),
        handed("hull", "pooled", [0.1, 0.1, 0.1, None]),
        attacked(cell("step", defense="hull", model="dense"), [None, None, 0.05, None]),
        attacked(cell("step", model="dense"), [0.1] * 4),
        handed("none", "pooled", [0.1] * 4),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    (row,) = table.frame.to_dict("records")
    assert (row["defense"], row["naive"], row["adaptive"]) == ("hull", 0.75, 0.25)
    assert row["undefended"] == 0.0


def test_adaptive_is_judged_on_the_samples_of_the_naive_score() -> None:
    records = [
        handed("squeeze", "dense", [None, None]),
        attacked(cell("step", defense="squeeze", model="dense", images=4), [None, None, 0.1, 0.1]),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    assert table.frame["adaptive"].tolist() == [1.0]


def test_without_an_attack_that_knows_the_defence_there_is_no_adaptive_score() -> None:
    """Whoever hands out no gradient is left to examples made elsewhere, which know nothing of it."""
    records = [
        handed("squeeze", "dense", [None, 0.1, None, None]),
        handed("squeeze", "pooled", [0.1, None, None, None]),
        handed("blur", "dense", [None, None, None, None]),
        attacked(cell("step", defense="blur", model="dense"), [0.1, None, None, None]),
        proved(cell("boxes", kind="certificate", defense="squeeze", model="dense"), [False] * 4),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    known, unknown = table.frame.to_dict("records")
    assert (known["defense"], known["adaptive"], known["illusion"]) == ("blur", 0.75, 0.25)
    assert (unknown["defense"], unknown["n"], unknown["naive"]) == ("squeeze", 4, 0.75)
    for name in ("adaptive", "adaptive_low", "adaptive_high", "illusion", "undefended"):
        assert math.isnan(unknown[name]), name
    assert formatted(table)["adaptive"].tolist() == ["75.0 % [30, 95]", "-"]


def test_both_scores_are_of_the_samples_that_an_attack_looked_at() -> None:
    """An attack that knows the defence and got fewer images than the examples handed over."""
    records = [
        handed("squeeze", "dense", [0.1, None, None, None, None, None]),
        attacked(cell("step", defense="squeeze", model="dense"), [None, 0.1]),
        attacked(cell("step", defense="squeeze", model="dense", eps=0.05), [None] * 6),
        attacked(cell("step", model="dense"), [0.1, 0.1, None, None, None, None]),
    ]
    table = next(one for one in defended(outcomes(*records), with_fronts()) if one.name.endswith("0.1"))
    (row,) = table.frame.to_dict("records")
    assert [row[name] for name in ("n", "clean", "naive", "adaptive", "undefended")] == [2, 1, 0.5, 0, 0]


def test_a_proof_or_a_minimal_attack_has_looked_as_well() -> None:
    records = [
        handed("squeeze", "dense", [None, None, None, None]),
        attacked(cell("nearest", eps=None, defense="squeeze", model="dense"), [0.05, 0.2]),
        proved(
            cell("boxes", kind="certificate", eps=0.2, defense="squeeze", model="dense"),
            [False, True, True, False],
        ),
    ]
    (table,) = defended(outcomes(*records), with_fronts())
    (row,) = table.frame.to_dict("records")
    assert (row["n"], row["naive"], row["adaptive"]) == (3, 1.0, pytest.approx(2 / 3))


def test_models_without_a_defence_have_no_such_table() -> None:
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


def test_each_white_box_attack_is_made_again_without_the_defence() -> None:
    """With its own parameters and norms, on as many images; not the minimal, fitted or black-box ones."""
    known = with_fronts()
    attack = known.attacks["step"]
    attacks = {
        "step": attack.model_copy(update={"access": "gradients", "cost": Cost.MEDIUM}),
        "other": attack.model_copy(update={"name": "other", "access": "gradients", "norms": ("l2",)}),
        "blind": attack.model_copy(update={"name": "blind", "access": "scores"}),
        "shared": attack.model_copy(update={"name": "shared", "access": "gradients", "fitted": True}),
        "nearest": known.attacks["nearest"].model_copy(update={"access": "gradients"}),
        "transfer": known.attacks["transfer"].model_copy(
            update={"norms": ("linf", "l2"), "defaults": {"attack": "step"}}
        ),
    }
    known = known.model_copy(update={"attacks": attacks})
    chosen = spec(
        attacks=("*",),
        defenses=("none", "squeeze"),
        threats=[{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 1.0}],
        parameters={"step": {"steps": 3}},
        images=dict.fromkeys(Cost, 5) | {Cost.MEDIUM: 3},
    )
    plan = make_plan(chosen, known, lambda name: f"hash of {name}")
    found = {
        (c.judge.chosen["attack"], c.threat.norm, c.images): c
        for c in plan.cells
        if "attack" in c.judge.chosen
    }
    assert set(found) == {("step(steps=3)", "linf", 3), ("step(steps=3)", "l2", 3), ("other", "l2", 5)}
    for cell_ in found.values():
        assert (cell_.defended, cell_.judge.sources) == ("dense+squeeze", ("dense",))
        assert cell_.judge.label.endswith("source=dense)")
        assert cell_.weights == 'hash of dense+squeeze{"bits": 1}<hash of dense'


def test_an_ensemble_keeps_to_the_sources_that_are_named() -> None:
    plan = make_plan(spec(sources=("pooled", "dense+hull")), with_fronts(), lambda name: f"hash of {name}")
    for cell_ in plan.cells:
        if cell_.judge.name == "together":
            assert cell_.judge.sources == ("pooled", "dense+hull")


@pytest.mark.parametrize("text", ["pgd(restarts=1,steps=10)", "fgsm", "strongest"])
def test_the_examples_of_the_bare_network_are_judged_behind_the_defence(text: str) -> None:
    """Made again by hand: the attack on the network alone, its points shown to the whole."""
    judge = {"chosen": {"source": "conv-small", "attack": text}, "images": 20, "eps": 0.1}
    found = run_cell(cell("transfer", model="conv-small", defense="jpeg", **judge), Settings())
    assert found.header.status == "done", found.header.reason
    bare, whole = (load(ModelName.parse(name)) for name in ("conv-small", "conv-small+jpeg"))
    data = load_data("mnist5k")
    batch, threat = data.batch(data.panel(20)), ThreatModel("linf", 0.1)
    points = named_attack(text).run(bare, batch, threat, Randomness(0)).x_adv
    right = whole.logits(batch.x).argmax(1) == batch.y
    fooled = margin(whole.logits(points), batch.y) < 0
    agree = torch.tensor(found.outcomes["success"].tolist()) == (fooled | ~right)
    # `strongest` draws its own random numbers in each run: where it stops early may differ for a few.
    assert int((~agree).sum()) <= (3 if text == "strongest" else 0)
    assert bool(fooled.any())
    assert not bool(fooled.all())


def test_an_unknown_attack_or_parameter_is_a_row_with_its_reason() -> None:
    for text, said in (("pgdd", "did you mean pgd"), ("pgd(step=1)", "did you mean step")):
        judge = {"chosen": {"source": "conv-small", "attack": text}}
        found = run_cell(cell("transfer", model="conv-small", defense="bit-depth", **judge), Settings())
        assert found.header.status == "failed"
        assert said in found.header.reason
