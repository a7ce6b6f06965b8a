"""A cell: one judge on one defended model, data set and threat; its identity is a versioned hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEME = "c1"


class Component(BaseModel):
    """A registry name with the parameters that were chosen; `defaults` are the others, for identity only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["attack", "certificate"]
    name: str
    chosen: dict[str, Any] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name, with the chosen parameters that tell two of a kind apart."""
        if not self.chosen:
            return self.name
        parts = [f"{key}={_short(value)}" for key, value in sorted(self.chosen.items())]
        return f"{self.name}({', '.join(parts)})"

    @property
    def sources(self) -> tuple[str, ...]:
        """The zoo names of the models whose examples are transferred."""
        one = self.chosen.get("source")
        return tuple(self.chosen.get("sources", ())) if one is None else (str(one),)


def _short(value: Any) -> Any:
    """A list by its entries, or by their number where there are many: a matrix' target tells the rest."""
    if not isinstance(value, list | tuple):
        return value
    return " & ".join(map(str, value)) if len(value) <= 3 else f"{len(value)} models"


class Threat(BaseModel):
    """A norm and a radius, in input units; eps=None asks for the smallest perturbation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: str
    eps: float | None

    @property
    def label(self) -> str:
        """The file-name form: linf-0.1, or linf-minimal."""
        return f"{self.norm}-{'minimal' if self.eps is None else format(self.eps, '.6g')}"


class Cell(BaseModel):
    """What is run: everything that may change the outcome, and nothing that may not (device, workers).

    `images` samples of the data set's fixed panel are judged. `weights` is the content hash of
    the model's weights, so that retrained weights are a new cell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    images: int
    model: str
    defense: str
    weights: str
    judge: Component
    threat: Threat
    seed: int

    @property
    def defended(self) -> str:
        """The zoo name: lenet, or lenet+adversarial-pgd."""
        return self.model if self.defense == "none" else f"{self.model}+{self.defense}"

    @property
    def title(self) -> str:
        """One line for people."""
        return f"{self.defended} | {self.judge.label} | {self.threat.label} | {self.images} images"

    @property
    def id(self) -> str:
        """The identity: a versioned hash of the cell's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"{SCHEME}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    @property
    def random_seed(self) -> int:
        """The seed of the judge's random numbers: the user's seed and the panel, never the batch."""
        text = f"{self.seed}/{self.judge.label}/{self.defended}/{self.threat.label}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
