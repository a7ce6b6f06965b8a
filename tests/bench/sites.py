"""Runs on disk and the sites made of them, for tests of the reports; by hand and without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from bench.record import Header, Record, empty_outcomes
from bench.store import RunFile, Store
from tests.bench.builders import attacked, cell, proved

PROOF = {"kind": "certificate"}
CLEAN = [True] * 11 + [False]


def save(folder: Path, *records: Record, matrix: str = "ci", text: str = "") -> Path:
    """A run of these records under `folder`."""
    store = Store(folder)
    for record in records:
        store.put(record)
    cells = [record.cell.id for record in records]
    store.save_run(RunFile(matrix=matrix, cells=cells, skips=[("lenet+polytope", "max pooling")], text=text))
    return folder


def failed(name: str, reason: str = "ValueError: boom", **more: object) -> Record:
    """A cell that failed."""
    of = cell(name, **more)  # type: ignore[arg-type]
    return Record(Header(cell=of, status="failed", reason=reason), empty_outcomes())


def some_records(model: str = "lenet", defense: str = "none", shift: float = 0.0) -> list[Record]:
    """Twelve samples under linf 0.1: fgsm, pgd, deepfool, a transfer, ibp and crown; one is misclassified."""
    who = {"model": model, "defense": defense, "images": 12}
    near = [0.02 + shift, 0.05 + shift, 0.09 + shift]
    transfer = cell("transfer", **who, chosen={"source": "conv-small"})
    return [
        attacked(cell("fgsm", **who), [near[0], None, 0.1, *[None] * 9], clean=CLEAN),
        attacked(cell("pgd", **who), [*near, 0.1, *[None] * 8], clean=CLEAN),
        attacked(cell("deepfool", **who, eps=None), [*near, 0.2, *[0.3] * 8], clean=CLEAN),
        attacked(transfer, [near[0], *[None] * 11], clean=CLEAN),
        proved(cell("ibp", **who, **PROOF), [False] * 9 + [True, False, False], clean=CLEAN),
        proved(cell("crown", **who, **PROOF), [False] * 8 + [True, True, False, False], clean=CLEAN),
    ]


def a_run(folder: Path) -> Path:
    """Three models, one of them with a failed judge."""
    return save(
        folder,
        *some_records(),
        *some_records("lenet", "adversarial-pgd", shift=0.04),
        *some_records("conv-small"),
        failed("pgd", model="conv-small", eps=0.3),
    )


def random_records(models: int, samples: int, seed: int = 0) -> list[Record]:
    """Records of many models: an attack and a certificate each, which never contradict each other."""
    rng, found = np.random.default_rng(seed), []
    for number in range(models):
        distance = rng.uniform(0.01, 0.4, samples)
        who = {"model": f"net-{number:04d}", "images": samples}
        reached = [float(d) if d <= 0.1 else None for d in distance]
        found.append(attacked(cell("pgd", **who), reached))
        found.append(proved(cell("ibp", **who, **PROOF), [bool(d > 0.25) for d in distance]))
    return found


@dataclass
class Element:
    """An HTML element as parsed: its name, attributes, text and the elements in it."""

    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        own = " ".join([*self.pieces, *(child.text for child in self.children)])
        return " ".join(own.split())

    def all(self, name: str) -> list[Element]:
        """Every element of a name, at any depth."""
        inside = [found for child in self.children for found in child.all(name)]
        return [child for child in self.children if child.name == name] + [
            found for found in inside if found not in self.children
        ]


class _Builder(HTMLParser):
    VOID = frozenset(("meta", "link", "input", "img", "br", "hr"))

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(made)
        if tag not in self.VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].pieces.append(data)


def parsed(path: Path) -> Element:
    """A page as a tree; raises AssertionError where its tags do not nest."""
    builder = _Builder()
    builder.feed(path.read_text(encoding="utf-8"))
    assert builder.open == [builder.root]
    return builder.root


def numbers(path: Path, table: str) -> list[dict[str, str]]:
    """The rows of a table of a page: by column, each cell's full value."""
    (place,) = [found for found in parsed(path).all("div") if found.attributes.get("id") == table]
    heads, *rows = place.all("tr")
    keys = [head.attributes["data-key"] for head in heads.all("th")]
    return [
        {
            key: found.attributes.get("data-value", found.text)
            for key, found in zip(keys, row.all("td"), strict=True)
        }
        for row in rows
    ]


def broken_links(site: Path) -> list[str]:
    """Every link, image, script and style sheet of every page that leads nowhere, fragments included."""
    names: dict[Path, set[str]] = {}
    pages = {path: parsed(path) for path in site.rglob("*.html")}
    for path, tree in pages.items():
        names[path.resolve()] = set(_ids(tree))
    found = []
    for path, tree in pages.items():
        for target in _targets(tree):
            parts = urlsplit(target)
            if parts.scheme == "data":
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            known = names.get(place, set())
            if (
                parts.scheme
                or parts.netloc
                or not place.is_file()
                or (parts.fragment and unquote(parts.fragment) not in known)
            ):
                found.append(f"{path.relative_to(site)}: {target}")
    return found


def _ids(tree: Element) -> list[str]:
    own = [tree.attributes["id"]] if "id" in tree.attributes else []
    return own + [name for child in tree.children for name in _ids(child)]


def _targets(tree: Element) -> list[str]:
    own = [tree.attributes[key] for key in ("href", "src") if key in tree.attributes]
    return own + [target for child in tree.children for target in _targets(child)]
