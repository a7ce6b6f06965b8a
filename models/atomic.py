"""Files that are whole or absent, and what they are called; needs no torch."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from models.errors import UserError

LONGEST = 200


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` so that no reader ever sees half a file; raises OSError that names it.

    What was written of a file that did not fit, as on a full disk, is removed again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def check_writable(folder: Path) -> None:
    """Raises UserError where nothing can be written into `folder`, or where it cannot be made; makes none."""
    try:
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(errno.EEXIST, "a file")
        there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"cannot write into {folder} ({reason}): name another folder") from None


def stem(name: str) -> str:
    """What the files of `name` are called: itself, or its beginning and its hash where it is too long.

    File systems take 255 bytes, endings and the mark of a file in the making included; a network that was
    trained three times is called more than that.
    """
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name.encode()[: LONGEST - 17].decode(errors='ignore')}~{digest}"
