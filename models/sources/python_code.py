"""`python:package.module:function` and `file:path/to/file.py:function`: a function returns the network."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

from models.errors import UserError
from models.sources.base import SOURCES, Place, load_state
from models.torchvision_operators import import_torchvision

OURS = ("attacks", "bench", "certify", "defenses", "models", "tests")

# The modules that users' code imported from its own folder: another folder may have the same names.
IMPORTED: dict[str, Path] = {}


@contextlib.contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Lets imports find what lies in `folder` first, also where it has a name of ours such as `models`.

    Our own modules of that name are set aside meanwhile; what the user's code imports later, while it
    runs, finds ours again.
    """
    hidden = [name for name in OURS if (folder / name).is_dir() or (folder / f"{name}.py").is_file()]
    hidden = [name for name in hidden if not _is_ours(folder / name)]

    def taken() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] in hidden}

    aside = taken()
    for name in [*aside, *(name for name, place in IMPORTED.items() if place != folder)]:
        sys.modules.pop(name, None)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in taken():
            del sys.modules[name]
        sys.modules.update(aside)
        for name in set(sys.modules) - before - set(aside):
            if _lies_in(sys.modules[name], folder):
                IMPORTED[name] = folder


def _lies_in(module: ModuleType, folder: Path) -> bool:
    written = getattr(module, "__file__", None)
    return written is not None and Path(written).is_relative_to(folder) and "site-packages" not in written


def _is_ours(place: Path) -> bool:
    return place.resolve() == (Path(__file__).parent.parent.parent / place.name).resolve()


def _call(module: ModuleType, function: str, place: Place) -> nn.Module:
    build = getattr(module, function, None)
    if not callable(build):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UserError(f"'{place.text}' has no function '{function}': it has {', '.join(names) or 'none'}")
    try:
        network = build if isinstance(build, nn.Module) else build(**place.arguments)
    except UserError:
        raise
    except Exception as error:
        # The user's own code may fail in any way.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"'{place.text}' failed: {type(error).__name__}: {reason}") from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise UserError(f"'{place.text}' returned {kind}: return the torch.nn.Module that gives the logits")
    return load_state(network, place.weights, place.text)


def _imported(place: Place, load: str) -> ModuleType:
    try:
        return importlib.import_module(load)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"'{place.text}' cannot be imported: {type(error).__name__}: {reason}") from error


def _python(place: Place) -> nn.Module:
    """A function of an installed package, or of one in the current folder."""
    name, colon, function = place.text.rpartition(":")
    if not colon or not name or not function:
        raise UserError(f"write python:PACKAGE.MODULE:FUNCTION, not 'python:{place.text}'")
    with imports_from(Path.cwd()):
        return _call(_imported(place, name), function, place)


def _package_root(folder: Path) -> Path | None:
    """The folder that holds the outermost package around `folder`, or None where it is in none."""
    if not (folder / "__init__.py").is_file():
        return None
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _file(place: Place) -> nn.Module:
    """A function of a Python file, which finds what lies beside it, and its package if it is in one."""
    name, colon, function = place.text.rpartition(":")
    path = Path(name).expanduser()
    if not colon or not function or path.suffix != ".py":
        raise UserError(f"write file:PATH.py:FUNCTION, not 'file:{place.text}'")
    if not path.is_file():
        raise UserError(f"no file {path}")
    root = _package_root(path.resolve().parent)
    if root is not None:
        with imports_from(root):
            dotted = ".".join(path.resolve().relative_to(root).with_suffix("").parts)
            return _call(_imported(place, dotted), function, place)
    unique = f"rhobust_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with imports_from(path.resolve().parent):
        sys.modules[unique] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} cannot be run: {type(error).__name__}: {reason}") from error
        return _call(module, function, place)


def _beside_torchvision(read: Callable[[Place], nn.Module]) -> Callable[[Place], nn.Module]:
    """`read`, once more with torchvision's operators declared where they are what the user's code lacks."""

    @functools.wraps(read)
    def opened(place: Place) -> nn.Module:
        try:
            return read(place)
        except UserError as error:
            if "operator torchvision::" not in str(error):
                raise
        import_torchvision()
        return read(place)

    return opened


SOURCES.add("python", _beside_torchvision(_python))
SOURCES.add("file", _beside_torchvision(_file))
