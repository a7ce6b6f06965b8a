"""What a matrix names and does not run, with the reason: nothing is left out without a word."""

from __future__ import annotations

from dataclasses import dataclass

from bench.catalog import Catalog, Entry
from bench.spec import MatrixSpec, MatrixThreat
from models.cost import WIDE, Cost
from models.registry import suggest


@dataclass(frozen=True)
class Skip:
    """Something the matrix named that cannot be run, and why."""

    what: str
    reason: str


def expand(kind: str, names: tuple[str, ...], known: dict[str, Entry]) -> list[str]:
    """`names` with "*" replaced by everything known; raises UserError for an unknown name."""
    for name in names:
        if name != "*" and name not in known:
            raise suggest(kind, name, sorted(known))
    return sorted(known) if "*" in names else list(dict.fromkeys(names))


def zoo_name(pair: tuple[str, str]) -> str:
    """The zoo name of (model, defense)."""
    return pair[0] if pair[1] == "none" else f"{pair[0]}+{pair[1]}"


def cost_of(judge: Entry, model: Entry) -> Cost:
    """The cost class of a judge on a model: wide networks have one of their own."""
    return judge.wide_cost if judge.wide_cost and model.neurons > WIDE else judge.cost


def threats_of(spec: MatrixSpec, entry: Entry, cost: Cost | None = None) -> list[MatrixThreat]:
    """The matrix' threats in the component's norms that afford it; one without eps per norm if it is minimal.

    That one gets the images of all threats that it serves. `cost` is what it costs on some model, its own
    class where none is given.
    """
    cost = cost or entry.cost
    mine = [threat for threat in spec.threats if threat.norm in entry.norms and threat.affords(cost)]
    if entry.minimal:
        served: dict[str, list[int | None]] = {}
        for threat in mine:
            served.setdefault(threat.norm, []).append(threat.images)
        return [
            MatrixThreat(norm=norm, eps=None, images=None if None in most else max(filter(None, most)))
            for norm, most in served.items()
        ]
    return [threat for threat in mine if threat.eps is not None]


def alone(spec: MatrixSpec, catalog: Catalog, zoo: list[tuple[str, str]], sources: list[str]) -> list[Skip]:
    """Targets with too few sources besides them for an ensemble."""
    names = [
        name for name in expand("attack", spec.attacks, catalog.attacks) if catalog.attacks[name].ensemble
    ]
    return [
        Skip(f"attack {name} on {target}", "needs two sources or more besides its target: see `sources`")
        for name in names
        for target in map(zoo_name, zoo)
        if threats_of(spec, catalog.attacks[name]) and len(set(sources) - {target}) < 2
    ]


def idle(spec: MatrixSpec, catalog: Catalog) -> list[Skip]:
    """Components that the matrix names but whose norms it never asks for."""
    named = [
        ("attack", name, catalog.attacks[name]) for name in expand("attack", spec.attacks, catalog.attacks)
    ]
    named += [
        ("certificate", name, catalog.certificates[name])
        for name in expand("certificate", spec.certificates, catalog.certificates)
    ]
    return [
        Skip(f"{kind} {name}", _why_idle(spec, entry))
        for kind, name, entry in named
        if not threats_of(spec, entry)
    ]


def _why_idle(spec: MatrixSpec, entry: Entry) -> str:
    if any(threat.norm in entry.norms for threat in spec.threats):
        return f"is {entry.cost.value}, which no threat of this matrix in its norms affords: see `dearest`"
    return f"has norms {', '.join(entry.norms)}, which no threat of this matrix uses"


def unseen(spec: MatrixSpec, catalog: Catalog, zoo: list[tuple[str, str]]) -> list[Skip]:
    """Judges that the matrix names itself, on targets where their cost class gets no image."""
    named = [("attack", name, catalog.attacks[name]) for name in spec.attacks if name != "*"]
    named += [("certificate", name, catalog.certificates[name]) for name in spec.certificates if name != "*"]
    found = []
    for kind, name, entry in named:
        for pair in zoo:
            cost = cost_of(entry, catalog.models[pair[0]]) if kind == "certificate" else entry.cost
            if not spec.images[cost] and threats_of(spec, entry):
                reason = f"gets no image: {cost.value} = 0 under [images], give it some"
                found.append(Skip(f"{kind} {name} on {zoo_name(pair)}", reason))
    return found
