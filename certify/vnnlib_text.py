"""Writes properties as VNN-LIB 1.0."""

from __future__ import annotations

from collections.abc import Sequence

from certify.property import Clause, Property


def format_vnnlib(properties: Sequence[Property]) -> str:
    """The text of a file with these properties, each number such that it is read back unchanged."""
    first = properties[0]
    outputs = first.clauses[0].rows.shape[1]
    lines = [f"(declare-const X_{i} Real)" for i in range(first.lower.numel())]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    if len(properties) == 1:
        lines += [f"(assert {bound})" for bound in _bounds(first)]
        lines.append(f"(assert (or {' '.join(f'(and {_atoms(clause)})' for clause in first.clauses)}))")
    else:
        cases = [
            f"  (and {' '.join(_bounds(one))} {_atoms(clause)})"
            for one in properties
            for clause in one.clauses
        ]
        lines += ["(assert (or", *cases, "))"]
    return "\n".join(lines) + "\n"


def _bounds(one: Property) -> list[str]:
    ends = zip(one.lower.flatten().tolist(), one.upper.flatten().tolist(), strict=True)
    return [
        part for i, (low, high) in enumerate(ends) for part in (f"(>= X_{i} {low!r})", f"(<= X_{i} {high!r})")
    ]


def _atoms(clause: Clause) -> str:
    return " ".join(
        _atom(row, offset) for row, offset in zip(clause.rows.tolist(), clause.offsets.tolist(), strict=True)
    )


def _atom(row: list[float], offset: float) -> str:
    factors = {j: factor for j, factor in enumerate(row) if factor}
    if sorted(factors.values()) == [-1.0, 1.0] and offset == 0:
        small, large = (next(j for j, factor in factors.items() if factor == sign) for sign in (1.0, -1.0))
        return f"(<= Y_{small} Y_{large})"
    terms = " ".join(f"(* {factor!r} Y_{j})" for j, factor in factors.items())
    return f"(<= (+ {terms} {offset!r}) 0.0)"
