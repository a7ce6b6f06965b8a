"""Whether the components of cells can be built at all, asked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

from attacks.base import ATTACKS
from bench.cell import Cell, Component
from bench.weights import is_own
from bench.work import named_attack
from certify.base import CERTIFIERS
from defenses.zoo import ModelName
from models.errors import UserError


def check_buildable(cells: Iterable[Cell]) -> None:
    """Raises UserError for a value that a judge or a defence of `cells` refuses whatever it is run on."""
    judges: dict[str, Component] = {}
    for cell in cells:
        judges.setdefault(cell.judge.model_dump_json(), cell.judge)
    for judge in judges.values():
        try:
            _build(judge)
        except UserError as reason:
            raise UserError(f"parameters.{judge.name}: {reason}") from None
    for name in sorted({cell.defended for cell in cells}):
        if not is_own(name):
            parsed = ModelName.parse(name)
            parsed.parts()
            parsed.fronts()


def _build(judge: Component) -> None:
    """Builds a judge and drops it; of one that needs other models, the attack it carries out on them."""
    if judge.kind == "certificate":
        CERTIFIERS[judge.name](**judge.chosen)
        return
    chosen = dict(judge.chosen)
    if isinstance(chosen.get("attack"), str):
        chosen["attack"] = named_attack(chosen["attack"])
        chosen["attack"].check_counts()
    if not ATTACKS[judge.name].models:
        ATTACKS[judge.name](**chosen).check_counts()
