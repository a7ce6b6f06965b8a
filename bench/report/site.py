"""A folder of pages, built aside and moved into place whole."""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import vl_convert
from markupsafe import Markup

from bench.report.figures import Figure, theme
from models.errors import UserError

HERE = Path(__file__).parent
MARKER = "report.json"


@dataclass(frozen=True)
class Page:
    """A page: where it lies in the site, its heading, its template and what the template shows."""

    path: str
    title: str
    template: str
    context: dict[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """The templates, with every value escaped."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.filters["inline_json"] = inline_json
    env.globals["theme"] = theme()
    return env


def inline_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no text in it can close the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def relative(target: str, page: str) -> str:
    """The address of a place in the site as seen from a page."""
    path, mark, fragment = target.partition("#")
    start = posixpath.dirname(page) or "."
    found = posixpath.relpath(path, start) if path and path != page else ""
    return quote(found, safe="/+.~") + mark + quote(fragment, safe="+.=&,")


def render(page: Page, menu: list[tuple[str, str]], footer: str) -> str:
    """The page as HTML."""
    template = environment().get_template(page.template)
    return template.render(
        page=page,
        menu=menu,
        footer=footer,
        link=lambda target: relative(target, page.path),
        has_figures=_has_figures(page.context),
        **page.context,
    )


def _has_figures(value: Any) -> bool:
    if isinstance(value, Figure):
        return True
    if isinstance(value, dict):
        return any(map(_has_figures, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_figures, value))


def write_static(folder: Path) -> None:
    """Style sheet and scripts, Vega with Vega-Lite and Vega-Embed among them: nothing is fetched."""
    static = folder / "static"
    static.mkdir()
    for path in sorted((HERE / "static").iterdir()):
        if path.suffix in (".css", ".js"):
            shutil.copyfile(path, static / path.name)
    (static / "vega.js").write_text(_vega(), encoding="utf-8")


@lru_cache(maxsize=1)
def _vega() -> str:
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def check_place(out: Path, force: bool) -> None:
    """Raises UserError where `out` is taken; `force` replaces an older report, never anything else."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UserError(f"{out} exists: pass another --out, or --force to replace an older report")
    if out.is_symlink() or not (out.is_dir() and (out / MARKER).is_file()):
        raise UserError(f"{out} exists and is no report: --force replaces reports only, pass another --out")


@contextmanager
def built_aside(out: Path, force: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends, and vanishes where it fails."""
    check_place(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}: pass another --out") from None
    try:
        aside.chmod(0o755)
        yield aside
        check_place(out, force)
        if out.exists():
            old = aside.with_name(f"{aside.name}.old")
            os.replace(out, old)
            os.replace(aside, out)
            shutil.rmtree(old)
        else:
            os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
