"""The pages name what is registered, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.registered import catalog

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS = {
    "attacks": "Attacks",
    "certificates": "Certificates",
    "defenses": "Defences",
    "models": "Models",
    "data": "Data",
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_methods_page_names_the_registry(kind: str) -> None:
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(SECTIONS[kind])]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, flags=re.MULTILINE)
    entries = getattr(catalog(), kind)
    assert [name for name, _ in rows] == list(entries)
    for name, rest in rows:
        summary = entries[name].summary.replace("|", "&#124;")
        assert summary in rest
        assert entries[name].paper in rest
