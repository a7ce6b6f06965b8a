"""From a matrix to its cells: pure, needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

from bench.catalog import Catalog, Entry
from bench.cell import Cell, Component, Threat
from bench.naming import AT_INPUT, TRAINED, identity, read_defenses, refusal, trained_name, unfit_for
from bench.skips import Skip, alone, cost_of, expand, idle, threats_of, unseen, zoo_name
from bench.spec import MatrixSpec
from bench.weights import is_own
from models.cost import WIDE
from models.errors import UserError
from models.naming import Term
from models.registry import suggest


@dataclass(frozen=True)
class Plan:
    """The cells of a matrix in the order they run, and what was left out."""

    cells: tuple[Cell, ...]
    skips: tuple[Skip, ...]


@dataclass(frozen=True)
class Filters:
    """Names from the command line that replace the matrix' own lists; an empty tuple keeps them."""

    models: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()


def make_plan(
    spec: MatrixSpec, catalog: Catalog, weights: Callable[[str], str], filters: Filters | None = None
) -> Plan:
    """Every cell of `spec`; `weights` maps a zoo name to its weights' hash.

    Raises UserError for unknown names and for parameters a component does not have.
    """
    whole, own, weights = spec, weights, cache(partial(identity, catalog=catalog, weights=weights))
    spec, pairs = _filtered(spec, catalog, filters or Filters())
    if spec.data not in catalog.data:
        raise suggest("data set", spec.data, sorted(catalog.data))
    expand("component", tuple(spec.parameters), catalog.attacks | catalog.certificates)
    for source in spec.sources:
        model, plus, defense = source.partition("+")
        expand("model", (model,), catalog.models)
        read_defenses((defense,) if plus else (), catalog)
    named = set(spec.defenses) | {text.partition("+")[2] for text in (filters or Filters()).models}
    pairs = [
        (model, defense, reason or _untrained(zoo_name((model, defense)), catalog, own, defense in named))
        for model, defense, reason in pairs
    ]
    skips = [Skip(f"{model}+{defense}", reason) for model, defense, reason in pairs if reason]
    zoo = [(model, defense) for model, defense, reason in pairs if not reason]
    sources = _sources(whole, catalog, list(map(zoo_name, zoo)), weights)
    cells: list[Cell] = []
    for model, defense in zoo:
        for judge, threat, images in _judges(spec, catalog, (model, defense), sources):
            cells.append(
                Cell(
                    data=spec.data,
                    images=images,
                    model=model,
                    defense=defense,
                    weights=_all_weights(zoo_name((model, defense)), judge, weights),
                    judge=judge,
                    threat=threat,
                    seed=spec.seed,
                )
            )
    left_out = idle(spec, catalog) + alone(spec, catalog, zoo, sources) + unseen(spec, catalog, zoo)
    return Plan(tuple(cells), (*skips, *left_out))


def with_own(catalog: Catalog, models: tuple[str, ...], data: str) -> Catalog:
    """The catalog with the user's own models and data set, under the lines that name them.

    A model of unknown width counts as wide.
    """

    def entry(name: str) -> Entry:
        return Entry(name=name, summary="The user's own.", paper="", neurons=WIDE + 1)

    mine = {name: entry(name) for name in models if is_own(name)}
    images = {data: entry(data)} if is_own(data) else {}
    return catalog.model_copy(update={"models": catalog.models | mine, "data": catalog.data | images})


def _untrained(name: str, catalog: Catalog, weights: Callable[[str], str], named: bool) -> str | None:
    """Why a model that "*" stands for is left out; what was named itself is trained when it is needed."""
    trained = trained_name(name, catalog)
    if named or weights(trained) != "untrained":
        return None
    return f"has no weights: python -m bench train '{trained}' makes them"


def _filtered(
    spec: MatrixSpec, catalog: Catalog, filters: Filters
) -> tuple[MatrixSpec, list[tuple[str, str, str | None]]]:
    """The matrix under the filters, and its (model, defense, why not) pairs in order."""
    changes: dict[str, tuple[str, ...]] = {}
    if filters.attacks or filters.certificates:
        changes = {"attacks": filters.attacks, "certificates": filters.certificates}
    if filters.defenses:
        changes["defenses"] = filters.defenses
    spec = spec.model_copy(update=changes)
    defenses = read_defenses(spec.defenses, catalog)
    pairs: list[tuple[str, str]] = []
    for name in filters.models or spec.models:
        if is_own(name) and name in catalog.models:
            # A defence that was named for it is not left out without a word; "*" stands for the zoo's.
            named = filters.defenses or (() if filters.models else spec.defenses)
            asked = [] if {TRAINED, AT_INPUT} & set(named) else read_defenses(named, catalog)
            pairs += [(name, "none"), *((name, defense) for defense in asked)]
            continue
        model, plus, defense = name.partition("+")
        models = expand("model", (model,), catalog.models)
        chosen = read_defenses((defense,), catalog) if plus else defenses
        pairs += [(model, defense) for model in models for defense in chosen]
    ordered = sorted(dict.fromkeys(pairs), key=lambda pair: (pair[0], pair[1] != "none", pair[1]))
    if not ordered:
        raise UserError("the matrix names no model: add one to `models`, or pass --model")
    return spec, [(m, d, _misfit(m, d, spec.data, catalog)) for m, d in ordered]


def _misfit(model: str, defense: str, data: str, catalog: Catalog) -> str | None:
    """Why `model` behind `defense` is no target of a matrix on `data`, or None."""
    if is_own(model) and defense != "none":
        return "is judged as it is: put the defence into your own model"
    return unfit_for(model, data, catalog) or refusal(model, defense, catalog)


def _sources(whole: MatrixSpec, catalog: Catalog, zoo: list[str], weights: Callable[[str], str]) -> list[str]:
    """The models whose examples are transferred: those named, or all trained ones of the whole matrix."""
    if "*" not in whole.sources:
        return list(dict.fromkeys(name.removesuffix("+none") for name in whole.sources))
    _, pairs = _filtered(whole, catalog, Filters())
    names = [zoo_name((model, defense)) for model, defense, reason in pairs if not reason]
    return [name for name in names if name in zoo or weights(name) != "untrained"]


def _all_weights(name: str, judge: Component, weights: Callable[[str], str]) -> str:
    sources = ",".join(weights(source) for source in judge.sources)
    return f"{weights(name)}<{sources}" if sources else weights(name)


def _judges(
    spec: MatrixSpec, catalog: Catalog, pair: tuple[str, str], sources: list[str]
) -> Iterator[tuple[Component, Threat, int]]:
    """Every (judge, threat, number of images) that the matrix sets on one defended model."""
    for name in expand("attack", spec.attacks, catalog.attacks):
        entry = catalog.attacks[name]
        images = spec.images[entry.cost]
        chosen = _chosen(spec, entry)
        for variant in _variants(entry, chosen, _others(entry, pair, sources, catalog)):
            judge = Component(kind="attack", name=name, chosen=variant, defaults=entry.defaults)
            for threat in threats_of(spec, entry):
                if images:
                    yield judge, threat.plain, threat.limited(images)
        yield from _unaware(spec, catalog, entry, pair)
    for name in expand("certificate", spec.certificates, catalog.certificates):
        entry = catalog.certificates[name]
        cost = cost_of(entry, catalog.models[pair[0]])
        images = spec.images[cost]
        judge = Component(kind="certificate", name=name, chosen=_chosen(spec, entry), defaults=entry.defaults)
        for threat in threats_of(spec, entry, cost):
            if images:
                yield judge, threat.plain, threat.limited(images)


def _unaware(
    spec: MatrixSpec, catalog: Catalog, entry: Entry, pair: tuple[str, str]
) -> Iterator[tuple[Component, Threat, int]]:
    """The matrix' white-box attacks, made on the network behind the defences at its input and handed over.

    They know nothing of the defence, and are otherwise those that judge the whole (defended_table). Only
    where `entry` hands over the examples of any attack on one source, and for attacks that need no fitting.
    """
    target = zoo_name(pair)
    bare = trained_name(target, catalog)
    if bare == target or entry.models != ("source",) or "attack" not in entry.defaults:
        return
    for name in expand("attack", spec.attacks, catalog.attacks):
        inner = catalog.attacks[name]
        images = min(spec.images[entry.cost], spec.images[inner.cost])
        if not images or inner.access != "gradients" or inner.minimal or inner.fitted or inner.models:
            continue
        text = str(Term(name, tuple(sorted(_chosen(spec, inner).items()))))
        chosen = {**_chosen(spec, entry), "source": bare, "attack": text}
        judge = Component(kind="attack", name=entry.name, chosen=chosen, defaults=entry.defaults)
        for threat in threats_of(spec, entry):
            if threat.norm in inner.norms:
                yield judge, threat.plain, threat.limited(images)


def _others(entry: Entry, pair: tuple[str, str], sources: list[str], catalog: Catalog) -> list[str]:
    """The sources besides the target, and the network behind the defences at its input (defended_table).

    An ensemble keeps to what the matrix names.
    """
    target = zoo_name(pair)
    bare = [] if entry.ensemble else [trained_name(target, catalog)]
    return [name for name in dict.fromkeys((*sources, *bare)) if name != target]


def _variants(entry: Entry, chosen: dict[str, object], others: list[str]) -> list[dict[str, object]]:
    """The parameters under which an attack meets one target, `others` being the sources besides it."""
    if entry.ensemble:
        return [{**chosen, entry.models[0]: others}] if len(others) > 1 else []
    variants = [{**chosen, entry.models[0]: source} for source in others] if entry.models else [chosen]
    for key, values in entry.sweeps.items():
        if key not in chosen:
            variants = [{**variant, key: value} for variant in variants for value in values]
    return variants


def _chosen(spec: MatrixSpec, entry: Entry) -> dict[str, object]:
    chosen = spec.parameters.get(entry.name, {})
    for key in chosen:
        if key not in entry.defaults:
            raise suggest(f"parameter of {entry.name}", key, sorted(entry.defaults))
    return dict(chosen)
