"""The threat of a name: a norm ball, moves of the picture or its pixels, light, a corruption, free pixels."""

from __future__ import annotations

from models.corruption import Corruption
from models.flow import Flow
from models.lighting import Lighting
from models.norms import BALLS, LIGHTS, POSES, check_size
from models.pixels import FreePixels
from models.poses import Spatial
from models.threat import UNIT_BOX, Box, ThreatModel


def threat_named(norm: str, eps: float | None, box: Box = UNIT_BOX) -> ThreatModel:
    """The threat `norm` of size `eps` (models.norms); raises UserError for an unknown name or a bad size."""
    check_size(norm, eps)
    if norm in BALLS:
        return ThreatModel(norm, eps, box)
    if norm in POSES:
        return Spatial(norm, eps, box)
    if norm == "flow":
        return Flow(norm, eps, box)
    if norm in LIGHTS:
        return Lighting(norm, eps, box)
    return Corruption(norm, eps, box) if norm == "corruption" else FreePixels(norm, eps, box)
