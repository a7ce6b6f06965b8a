"""What a matrix asks for: read from TOML, validated, frozen; needs no torch."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.cell import Threat
from models.cost import Cost
from models.eps import parse_eps
from models.errors import UserError
from models.norms import check_size
from models.registry import suggest

MATRICES = Path(__file__).parent / "matrices"


class MatrixThreat(Threat):
    """A threat as a matrix asks for it: no judge gets more than `images` under it; None sets no limit.

    Judges of a cost class above `dearest` are not run under it.
    """

    images: int | None = Field(default=None, ge=1)
    dearest: Cost = Cost.EXTREME

    def affords(self, cost: Cost) -> bool:
        """Whether judges of this cost class are run under it."""
        classes = list(Cost)
        return classes.index(cost) <= classes.index(self.dearest)

    @property
    def plain(self) -> Threat:
        """The threat itself, which is all that a cell holds."""
        return Threat(norm=self.norm, eps=self.eps)

    def limited(self, images: int) -> int:
        """How many of so many images a judge gets under this threat."""
        return images if self.images is None else min(images, self.images)


class MatrixSpec(BaseModel):
    """A benchmark: which models, defences, attacks and certificates meet under which threats.

    "*" in a list stands for everything registered. `images` says how many images a component
    of each cost class gets, and a threat how many at most; `parameters` overrides hyper-parameters by
    component name; `sources` are the models whose adversarial examples are transferred.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str = "mnist5k"
    seed: int = 0
    models: tuple[str, ...] = ("*",)
    defenses: tuple[str, ...] = ("*",)
    attacks: tuple[str, ...] = ("*",)
    certificates: tuple[str, ...] = ("*",)
    sources: tuple[str, ...] = ("*",)
    threats: tuple[MatrixThreat, ...]
    images: dict[Cost, int]
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("threats", mode="before")
    @classmethod
    def _read_threats(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError('expected a list like [{ norm = "linf", eps = "8/255" }]')
        rows = []
        for row in value:
            if not isinstance(row, dict):
                raise ValueError(f'expected a table like {{ norm = "linf", eps = "8/255" }}, not {row!r}')
            try:
                eps = parse_eps(row.get("eps"))
                check_size(str(row.get("norm")), eps)
                rows.append({**row, "eps": eps})
            except UserError as error:
                raise ValueError(str(error)) from None
        return rows

    @field_validator("images")
    @classmethod
    def _positive(cls, value: dict[Cost, int]) -> dict[Cost, int]:
        missing = [cost.value for cost in Cost if cost not in value]
        if missing:
            raise ValueError(f"no number of images for cost class {', '.join(missing)}")
        if min(value.values()) < 0:
            raise ValueError("numbers of images must be >= 0")
        return value

    def limited(self, limit: int | None) -> MatrixSpec:
        """The same matrix on at most `limit` images of each kind."""
        if limit is None:
            return self
        if limit < 1:
            raise UserError(f"--limit must be at least 1, not {limit}")
        return self.model_copy(update={"images": {cost: min(n, limit) for cost, n in self.images.items()}})


def matrix_names() -> list[str]:
    """The matrices that ship with the suite."""
    return sorted(path.stem for path in MATRICES.glob("*.toml"))


def matrix_text(name: str) -> str:
    """The TOML of a matrix of the user's own, "" for one that ships with the suite."""
    return Path(name).read_text(encoding="utf-8") if name.endswith(".toml") else ""


def read_matrix(name: str) -> MatrixSpec:
    """The shipped matrix `name`, or the one in the file `name` (ending in .toml).

    Raises UserError naming file and line for TOML that cannot be read, and file and field for
    values that are not valid.
    """
    path = Path(name) if name.endswith(".toml") else MATRICES / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise UserError(f"no matrix file {path}")
        raise suggest("matrix", name, matrix_names())
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    try:
        return MatrixSpec(**{"name": path.stem, **raw})
    except ValidationError as error:
        first = error.errors()[0]
        line = _line_of(path, str(first["loc"][0]))
        raise UserError(f"{path}{line}: {_said(first)}") from None


def place_of(matrix: str, field: str = "") -> str:
    """Where a matrix says `field`: file and line of one of the user's own, the name of a shipped one."""
    if not matrix.endswith(".toml"):
        return f"matrix {matrix}"
    return f"{matrix}{_line_of(Path(matrix), field)}" if field else matrix


def _said(error: Any) -> str:
    """What is wrong with a field, in the words of TOML and with the fix."""
    place = [str(part) for part in error["loc"] if part != "[key]"]
    field = ".".join(place)
    if error["type"] == "missing":
        return f"{field} is missing: add it"
    if error["type"] == "extra_forbidden" and len(place) == 1:
        return str(suggest("key", field, sorted(MatrixSpec.model_fields)))
    if error["type"] == "tuple_type":
        return f'{field}: expected a list like ["..."]'
    if error["type"] == "enum":
        return f"{field}: the cost classes are {', '.join(cost.value for cost in Cost)}"
    return f"{field}: {error['msg'].removeprefix('Value error, ')}"


def _line_of(path: Path, field: str) -> str:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip().lstrip("[").startswith(field):
            return f", line {number}"
    return ""
