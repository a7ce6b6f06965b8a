"""From a matrix to its cells, on a small hand-made catalog."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bench.catalog import Entry, load
from bench.cell import Cell, Threat
from bench.plan import Filters, Plan, make_plan
from bench.spec import MatrixSpec, MatrixThreat, read_matrix
from models.cost import WIDE, Cost
from models.errors import UserError
from tests.bench.builders import catalog

IMAGES = {Cost.CHEAP: 100, Cost.MEDIUM: 50, Cost.EXPENSIVE: 20, Cost.EXTREME: 2}
THREATS = (
    MatrixThreat(norm="linf", eps=0.1),
    MatrixThreat(norm="linf", eps=0.3),
    MatrixThreat(norm="l2", eps=1.0),
)


def weights(name: str) -> str:
    return f"hash-of-{name}"


def spec(**changes: Any) -> MatrixSpec:
    return MatrixSpec(**{"name": "mine", "threats": (), "images": IMAGES}).model_copy(
        update={"threats": THREATS, **changes}
    )


def plan(filters: Filters | None = None, **changes: Any) -> Plan:
    return make_plan(spec(**changes), catalog(), weights, filters)


def defended(cells: tuple[Cell, ...]) -> list[str]:
    return list(dict.fromkeys(cell.defended for cell in cells))


def test_a_star_is_everything_registered() -> None:
    made = plan()
    assert defended(made.cells) == ["dense", "dense+hull", "pooled"]
    counts = Counter(cell.judge.name for cell in made.cells if cell.defended == "dense")
    # transfer: two other sources x two linf radii; sparse has only l1, which no threat uses.
    assert counts == {"step": 3, "nearest": 2, "transfer": 4, "boxes": 3, "program": 2}
    assert len({cell.id for cell in made.cells}) == len(made.cells) == 3 * 14


@pytest.mark.slow
def test_the_shipped_registries_are_in_full() -> None:
    """`full` has every judge and defence on the three main networks, `zoo` the same on all networks."""
    known = load()
    main, everything = (make_plan(read_matrix(name), known, weights).cells for name in ("full", "zoo"))
    training = {name for name, entry in known.defenses.items() if not entry.at_input}
    for cells in (main, everything):
        assert {cell.judge.name for cell in cells} == {*known.attacks, *known.certificates}
        assert {cell.defense for cell in cells} == training
    assert {cell.model for cell in main} == {"lenet", "fc500-150-10", "conv-small"}
    mnist = {name for name, entry in known.models.items() if entry.family == "mnist"}
    assert {cell.model for cell in everything} == mnist
    assert {cell.id for cell in main if not cell.judge.sources} <= {cell.id for cell in everything}


def test_images_follow_the_cost_class() -> None:
    images = {(cell.judge.name, cell.images) for cell in plan().cells}
    assert images == {("step", 100), ("nearest", 50), ("transfer", 100), ("boxes", 100), ("program", 2)}
    none = plan(images={**IMAGES, Cost.EXTREME: 0}).cells
    assert "program" not in {cell.judge.name for cell in none}


def test_a_threat_limits_the_images_of_its_judges_and_is_none_of_the_cells_identity() -> None:
    few = (
        MatrixThreat(norm="linf", eps=0.1, images=60),
        MatrixThreat(norm="linf", eps=0.3),
        MatrixThreat(norm="l2", eps=1.0, images=9),
    )
    cells = plan(threats=few, models=("dense+none",)).cells
    images = {(cell.judge.name, cell.threat.norm, cell.threat.eps): cell.images for cell in cells}
    assert images[("step", "linf", 0.1)] == 60
    assert images[("step", "linf", 0.3)] == 100
    assert images[("program", "linf", 0.1)] == 2
    # One search serves both radii of linf, the second of which sets no limit.
    assert images[("nearest", "linf", None)] == 50
    assert images[("nearest", "l2", None)] == images[("step", "l2", 1.0)] == 9
    assert {type(cell.threat) for cell in cells} == {Threat}
    unlimited = (few[0].model_copy(update={"images": None}), *few[1:])
    other = plan(threats=unlimited, models=("dense+none",)).cells
    assert {cell.id for cell in cells if cell.images < 60} <= {cell.id for cell in other}


def test_a_threat_runs_no_judge_that_is_dearer_than_it_affords() -> None:
    two = (MatrixThreat(norm="linf", eps=0.1), MatrixThreat(norm="linf", eps=0.3, dearest="cheap"))
    judged = {(cell.judge.name, cell.threat.eps) for cell in plan(threats=two, models=("dense+none",)).cells}
    assert judged == {
        *((name, eps) for name in ("step", "boxes") for eps in (0.1, 0.3)),
        ("nearest", None),
        ("program", 0.1),
    }
    # On a wide network it is what the judge costs there.
    known = catalog()
    dense = known.models["dense"].model_copy(update={"neurons": WIDE + 1})
    boxes = known.certificates["boxes"].model_copy(update={"wide_cost": Cost.EXTREME})
    wide = known.model_copy(
        update={"models": {"dense": dense}, "certificates": {**known.certificates, "boxes": boxes}}
    )
    cells = make_plan(spec(threats=two, models=("dense",), defenses=("none",)), wide, weights).cells
    assert [cell.threat.eps for cell in cells if cell.judge.name == "boxes"] == [0.1]
    left_out = plan(threats=two[1:], models=("dense+none",))
    assert {skip.what: skip.reason for skip in left_out.skips}["certificate program"] == (
        "is extreme, which no threat of this matrix in its norms affords: see `dearest`"
    )


def test_a_judge_that_is_named_and_gets_no_image_is_a_skip_with_its_reason() -> None:
    """A gate that names a certificate must not lose it in silence."""
    none = {**IMAGES, Cost.EXTREME: 0, Cost.CHEAP: 0}
    made = plan(images=none, certificates=("program",), attacks=("nearest", "step"), models=("dense+none",))
    assert {cell.judge.name for cell in made.cells} == {"nearest"}
    assert {skip.what: skip.reason for skip in made.skips} == {
        "certificate program on dense": "gets no image: extreme = 0 under [images], give it some",
        "attack step on dense": "gets no image: cheap = 0 under [images], give it some",
    }
    assert not plan(images=none, attacks=("nearest",), models=("dense+none",)).skips[1:]


def test_a_minimal_attack_runs_once_a_norm_without_a_radius() -> None:
    threats = [cell.threat for cell in plan(models=("dense+none",)).cells if cell.judge.name == "nearest"]
    assert threats == [Threat(norm="linf", eps=None), Threat(norm="l2", eps=None)]


def test_a_threat_without_a_radius_is_for_minimal_attacks_only() -> None:
    cells = plan(threats=(MatrixThreat(norm="l2", eps=None),), models=("dense+none",)).cells
    assert [(cell.judge.name, cell.threat.eps) for cell in cells] == [("nearest", None)]


def test_transfer_never_attacks_a_model_with_its_own_examples() -> None:
    pairs = [
        (cell.judge.chosen["source"], cell.defended) for cell in plan().cells if cell.judge.name == "transfer"
    ]
    zoo = ["dense", "dense+hull", "pooled"]
    assert set(pairs) == {(a, b) for a in zoo for b in zoo if a != b}
    only = [cell for cell in plan(sources=("pooled",)).cells if cell.judge.name == "transfer"]
    assert {(cell.judge.chosen["source"], cell.defended) for cell in only} == {
        ("pooled", "dense"),
        ("pooled", "dense+hull"),
    }


def with_ensemble(models: tuple[str, ...] = ("*",), **changes: Any) -> Plan:
    """The plan of an attack from all other models at once."""
    one = Entry(name="together", summary="-", paper="-", norms=("linf",), models=("sources",), ensemble=True)
    known = catalog().model_copy(update={"attacks": {"together": one}})
    return make_plan(spec(models=models, certificates=(), **changes), known, weights, None)


def test_an_ensemble_is_every_model_but_its_target() -> None:
    cells = with_ensemble().cells
    assert {(cell.defended, *cell.judge.sources) for cell in cells} == {
        ("dense", "dense+hull", "pooled"),
        ("dense+hull", "dense", "pooled"),
        ("pooled", "dense", "dense+hull"),
    }
    assert len(cells) == 3 * 2
    of_dense = next(cell for cell in cells if cell.defended == "dense")
    assert of_dense.weights == "hash-of-dense<hash-of-dense+hull,hash-of-pooled"
    assert of_dense.judge.label == "together(sources=dense+hull & pooled)"
    many = of_dense.judge.model_copy(update={"chosen": {"sources": list("abcd")}})
    assert many.label == "together(sources=4 models)"


def test_an_ensemble_of_one_is_a_skip() -> None:
    made = with_ensemble(sources=("pooled", "dense"))
    assert {cell.defended for cell in made.cells} == {"dense+hull"}
    alone = {skip.what for skip in made.skips if "two sources" in skip.reason}
    assert alone == {"attack together on dense", "attack together on pooled"}


def test_a_sweep_runs_its_values_one_by_one() -> None:
    one = Entry(
        name="weather", summary="-", paper="-", norms=("corruption",), sweeps={"kind": ("fog", "snow")}
    )
    one = one.model_copy(update={"defaults": {"kind": "worst"}})
    known = catalog().model_copy(update={"attacks": {"weather": one}})
    mine = spec(threats=(MatrixThreat(norm="corruption", eps=3),), models=("dense+none",))
    made = make_plan(mine, known, weights)
    assert [cell.judge.chosen for cell in made.cells] == [{"kind": "fog"}, {"kind": "snow"}]
    assert {skip.what for skip in made.skips if "no threat" in skip.reason} == {
        "certificate boxes",
        "certificate program",
    }
    chosen = mine.model_copy(update={"parameters": {"weather": {"kind": "worst"}}})
    assert [cell.judge.chosen for cell in make_plan(chosen, known, weights).cells] == [{"kind": "worst"}]


def test_a_refusal_is_a_skip_with_its_reason_and_no_cell() -> None:
    made = plan()
    assert "pooled+hull" not in defended(made.cells)
    assert ("pooled+hull", "max pooling has no dual") in [(skip.what, skip.reason) for skip in made.skips]


def test_a_judge_whose_norms_are_never_asked_for_is_a_skip() -> None:
    assert [skip.reason for skip in plan().skips if skip.what == "attack sparse"] == [
        "has norms l1, which no threat of this matrix uses"
    ]


def test_lenet_refuses_the_polytope_defence() -> None:
    skips = make_plan(read_matrix("full"), load(), weights).skips
    assert [skip for skip in skips if skip.what == "lenet+polytope" and "max pooling" in skip.reason]


def test_weights_are_part_of_the_identity_also_those_of_the_source() -> None:
    def retrained(name: str) -> str:
        return "other" if name == "pooled" else weights(name)

    before, after = plan().cells, make_plan(spec(), catalog(), retrained).cells
    assert [cell.title for cell in before] == [cell.title for cell in after]
    changed = {one.title for one, two in zip(before, after, strict=True) if one.id != two.id}
    touched = {
        cell.title
        for cell in before
        if cell.defended == "pooled" or cell.judge.chosen.get("source") == "pooled"
    }
    assert changed == touched
    assert 0 < len(changed) < len(before)


def test_parameters_of_the_matrix_reach_the_cell() -> None:
    cells = plan(parameters={"step": {"steps": 3}}, models=("dense+none",)).cells
    steps = [cell for cell in cells if cell.judge.name == "step"]
    assert {cell.judge.label for cell in steps} == {"step(steps=3)"}
    plain = {cell.id for cell in plan(models=("dense+none",)).cells if cell.judge.name == "step"}
    assert plain & {cell.id for cell in steps} == set()


EVERY = {"step", "nearest", "transfer", "boxes", "program"}
FILTERS = {
    "model": (Filters(models=("pooled",)), {"pooled"}, EVERY),
    "zoo member": (Filters(models=("dense+hull",)), {"dense+hull"}, EVERY),
    "defence": (Filters(defenses=("hull",)), {"dense+hull"}, EVERY),
    "attack": (Filters(attacks=("step",)), {"dense", "dense+hull", "pooled"}, {"step"}),
    "certificate": (Filters(certificates=("boxes",)), {"dense", "dense+hull", "pooled"}, {"boxes"}),
    "both": (
        Filters(attacks=("step",), certificates=("boxes",), models=("dense+none",)),
        {"dense"},
        {"step", "boxes"},
    ),
    "twice": (Filters(models=("pooled", "pooled"), attacks=("step", "step")), {"pooled"}, {"step"}),
}


@pytest.mark.parametrize("case", FILTERS)
def test_filters_replace_the_lists_of_the_matrix(case: str) -> None:
    filters, models, names = FILTERS[case]
    cells = plan(filters).cells
    assert set(defended(cells)) == models
    assert {cell.judge.name for cell in cells} == names
    assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.parametrize("case", FILTERS)
def test_filters_only_leave_cells_out(case: str) -> None:
    """Also those of transfer: its sources are the whole matrix', so that a record serves both runs."""
    filters, models, names = FILTERS[case]
    whole = plan().cells
    kept = [cell.id for cell in whole if cell.defended in models and cell.judge.name in names]
    assert [cell.id for cell in plan(filters).cells] == kept


def test_sources_outside_the_filter_are_used_only_where_they_are_trained() -> None:
    def some(name: str) -> str:
        return "untrained" if name == "dense+hull" else weights(name)

    chosen = Filters(models=("pooled",), attacks=("transfer",))
    cells = make_plan(spec(), catalog(), some, chosen).cells
    assert {cell.judge.chosen["source"] for cell in cells} == {"dense"}


def test_a_named_source_is_a_zoo_name_however_it_is_written() -> None:
    for written in ("dense", "dense+none"):
        cells = plan(Filters(attacks=("transfer",)), sources=(written,)).cells
        assert {cell.judge.chosen["source"] for cell in cells} == {"dense"}
        assert "dense" not in defended(cells)


UNKNOWN = {
    "model": ({"models": ("dens",)}, "unknown model 'dens': did you mean dense"),
    "defence": ({"defenses": ("hul",)}, "unknown defense 'hul': did you mean hull"),
    "defence of a zoo name": ({"models": ("dense+hul",)}, "unknown defense 'hul': did you mean hull"),
    "attack": ({"attacks": ("stepp",)}, "unknown attack 'stepp': did you mean step"),
    "certificate": ({"certificates": ("box",)}, "unknown certificate 'box': did you mean boxes"),
    "data": ({"data": "mnist5"}, "unknown data set 'mnist5': did you mean mnist5k"),
    "parameter": (
        {"parameters": {"step": {"step": 3}}},
        "unknown parameter of step 'step': did you mean steps",
    ),
    "component with parameters": (
        {"parameters": {"stepp": {"steps": 3}}},
        "unknown .*'stepp': did you mean step",
    ),
    "source": ({"sources": ("dens",)}, "unknown .*'dens': did you mean dense"),
    "beside a star": ({"attacks": ("*", "stepp")}, "unknown attack 'stepp': did you mean step"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_names_suggest_the_nearest(case: str) -> None:
    changes, message = UNKNOWN[case]
    with pytest.raises(UserError, match=message) as refusal:
        plan(**changes)
    assert "\n" not in str(refusal.value)


def test_a_name_like_nothing_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="known: nearest, sparse, step, transfer"):
        plan(attacks=("xyzzy",))


def test_no_model_is_refused() -> None:
    with pytest.raises(UserError, match="names no model"):
        plan(models=())
