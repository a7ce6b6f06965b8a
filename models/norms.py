"""The names of the threats and what their size means; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from models.errors import UserError

BALLS = ("linf", "l2", "l1", "l0")
"""Norm balls around the input: eps is a radius."""
POSES = {"spatial": (30.0, 0.1), "rotation": (1.0, 0.0), "translation": (0.0, 1.0)}
"""Moves of the whole picture: (degrees, share of a side) per unit of eps."""
LIGHTS = {"lighting": (1.0, 1.0), "brightness": (1.0, 0.0), "contrast": (0.0, 1.0)}
"""Changes of the light: (brightness as a share of the box's width, contrast as a gain) per unit of eps."""
REGIONS = ("patch", "mask")
"""Free choice of some pixels: eps is their share of the picture, in one square window or anywhere."""
SEVERITIES = 5
NORMS = (*BALLS, *POSES, "flow", *LIGHTS, "corruption", *REGIONS)


def unknown_norm(norm: object, known: Sequence[str]) -> UserError:
    """The error for a norm that is none of `known`: says how Linf, L-2 or 1 are written here."""
    plain = str(norm).casefold().replace("∞", "inf").replace("-", "").replace("_", "")
    meant = next((name for name in BALLS if plain in (name, name[1:]) and name in known), None)
    hint = f"write '{meant}'" if meant else f"known are {', '.join(known)}"
    return UserError(f"unknown norm '{norm}': {hint}")


def check_size(norm: str, eps: float | None) -> None:
    """Raises UserError for an unknown threat, or an eps that has no meaning for it."""
    if norm not in NORMS:
        raise unknown_norm(norm, NORMS)
    if norm in BALLS:
        return
    if eps is None:
        raise UserError(f"threat '{norm}' needs an eps: nothing searches for the smallest one")
    if norm == "corruption" and eps not in range(1, SEVERITIES + 1):
        raise UserError(f"a corruption's eps is its severity, 1 to {SEVERITIES}, not {eps:g}")
    if norm in LIGHTS and not 0 <= eps <= 1:
        raise UserError(f"eps of '{norm}' is a share of the range of values, in [0, 1], not {eps:g}")
    if norm in REGIONS and not 0 < eps <= 1:
        raise UserError(f"eps of '{norm}' is a share of the picture, in (0, 1], not {eps:g}")


def described(norm: str, eps: float) -> str:
    """The threat in words: "linf eps = 0.1", "rotation <= 30 degrees"."""
    if norm in POSES:
        degrees, share = (limit * eps for limit in POSES[norm])
        parts = [f"rotation <= {degrees:g} degrees"] * (degrees > 0)
        return (
            ", ".join([*parts, *[f"translation <= {100 * share:g} % of a side"] * (share > 0)]) or "no move"
        )
    if norm == "flow":
        return f"flow <= {eps:g} px"
    if norm in LIGHTS:
        names = zip(("brightness", "contrast"), LIGHTS[norm], strict=True)
        return ", ".join(f"{name} within {100 * limit * eps:g} %" for name, limit in names if limit)
    if norm == "corruption":
        return f"common corruptions, severity <= {eps:g}"
    if norm in REGIONS:
        where = "one square of" if norm == "patch" else "any pixels, at most"
        return f"{where} {100 * eps:g} % of the picture"
    return f"{norm} eps = {eps:g}"
