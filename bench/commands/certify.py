"""`certify`: properties of ONNX networks settled as in the verification competition VNN-COMP."""

from __future__ import annotations

import ast
import csv
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contents import Contents, digest_of
from bench.joint import present
from bench.verification import Answer, verify
from models.atomic import check_writable, write_atomically
from models.errors import UserError

TIMEOUT = 300.0


@dataclass(frozen=True)
class Line:
    """One line of an instances file: paths as written there, and its time limit.

    onnx is one path, or [('f', 'first.onnx'), ('g', 'second.onnx')], a path for each network by its name.
    """

    onnx: str
    vnnlib: str
    seconds: float

    def files(self, folder: Path) -> dict[str, Path]:
        """The ONNX files by the network's name, "" for one without."""
        return {name: folder / path for name, path in networks_in(self.onnx)}


def networks_in(text: str) -> list[tuple[str, str]]:
    """The names and paths in the first column of an instances file; raises ValueError for another list."""
    if not text.startswith("["):
        return [("", text)]
    try:
        found = [(str(name), str(path)) for name, path in ast.literal_eval(text)]
    except (SyntaxError, TypeError) as error:
        raise ValueError(str(error)) from None
    if not found or len(dict(found)) < len(found):
        raise ValueError("no networks, or one named twice")
    return found


def execute(
    onnx: Path | None,
    network: Sequence[str],
    vnnlib: Path | None,
    timeout: float | None,
    witness: Path | None,
    batch: Path | None,
    results: Path | None,
    seed: int,
    for_evaluate: str | None = None,
) -> int:
    """Settles one property, or every line of a batch; returns the exit code.

    Raises UserError where a model or an eps is given, which are `for_evaluate`.
    """
    if for_evaluate is not None:
        raise UserError(
            "certify takes --onnx NET and --vnnlib PROPERTY; to certify a model's images write "
            "'python -m bench evaluate MODEL --eps EPS --certify exact'"
        )
    if timeout is not None and not 0 < timeout < math.inf:
        raise UserError(f"--timeout must be above 0 seconds, not {timeout:g}")
    if batch is not None:
        if onnx is not None or network or vnnlib is not None:
            raise UserError("--batch names its own files: leave out --onnx, --network and --vnnlib")
        return _batch(batch, timeout, witness, results or Path("results.csv"), seed)
    if vnnlib is None or (onnx is None) == (not network):
        raise UserError(
            "give --onnx NET (or --network NAME=NET for each of several) and --vnnlib PROPERTY, "
            "or --batch instances.csv"
        )
    files = {"": onnx} if onnx is not None else _named(network)
    if results is not None:
        raise UserError("--results belongs to --batch: one property is answered on stdout")
    if witness is not None:
        if witness.is_dir():
            raise UserError(f"--witness {witness} is a folder: name the file to be written")
        check_writable(witness.parent)
    answer = verify(files, vnnlib, TIMEOUT if timeout is None else timeout, seed)
    print(answer.result)
    if answer.note:
        print(answer.note, file=sys.stderr)
    if answer.result == "sat":
        if witness is None:
            print(answer.witness, end="")
        else:
            _write_witness(witness, answer)
    return 0


def _named(networks: Sequence[str]) -> dict[str, Path]:
    """The files by their network's name, from NAME=FILE."""
    found: dict[str, Path] = {}
    for one in networks:
        name, sign, path = one.partition("=")
        if not (name and sign and path):
            raise UserError(f"--network takes NAME=FILE, not '{one}'")
        if name in found:
            raise UserError(f"--network {name} is given twice")
        found[name] = Path(path)
    return found


def _write_witness(path: Path, answer: Answer) -> None:
    """Writes a counterexample, or prints it where that fails: it may have taken long to find."""
    try:
        _write(path, answer.witness)
    except UserError:
        print(answer.witness, end="", file=sys.stderr, flush=True)
        raise


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _batch(batch: Path, timeout: float | None, witness: Path | None, results: Path, seed: int) -> int:
    """Runs every line that has no row yet; a row is appended as soon as its line is finished.

    The columns are VNN-COMP's, without a header: category (the folder's name), onnx, vnnlib, seconds
    of preparation, result, seconds of verification. Rows that say `error` are run again. Those of other
    categories are kept, and answer nothing here: two batches may call different files alike. So do answers
    about files that have changed since.
    """
    lines, folder = _lines(batch, timeout), batch.resolve().parent
    contents = Contents(results)
    kept = _finished(results, folder, contents)
    finished = Counter((row[1], row[2]) for row in kept if row[0] == folder.name)
    known = finished & Counter((line.onnx, line.vnnlib) for line in lines)
    if known:
        print(f"{results} has answers to {known.total()} of {len(lines)} lines: they are not run again")
    _write(results, _text(kept))
    if witness is not None:
        check_writable(witness)
    failed = 0
    for number, line in enumerate(lines, start=1):
        if finished[line.onnx, line.vnnlib]:
            finished[line.onnx, line.vnnlib] -= 1
            continue
        digest = _digest(folder, line.onnx, line.vnnlib)
        try:
            answer = verify(line.files(folder), folder / line.vnnlib, line.seconds, seed)
        except Exception as error:
            # Whatever one instance meets, the others go on.
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = str(error).splitlines()[0] if str(error) else ""
            print(f"error: {batch}, instance {number}: {kind}{reason}", file=sys.stderr)
            answer, failed = Answer("error", None, None, 0.0, 0.0), failed + 1
        if answer.note:
            print(f"{batch}, instance {number}: {answer.note}", file=sys.stderr)
        if answer.result == "sat" and witness is not None:
            try:
                _write_witness(witness / _witness_name(line), answer)
            except UserError as error:
                print(f"error: {batch}, instance {number}: {error}", file=sys.stderr)
                failed += 1
        contents.add((folder.name, line.onnx, line.vnnlib), digest)
        _append(results, folder.name, line, answer)
        print(f"[{number}/{len(lines)}] {line.onnx} {line.vnnlib}: {answer.result}", flush=True)
    counts = Counter(row[4] for row in _whole(results) if row[0] == folder.name)
    print(
        f"{results}: {', '.join(f'{count} {word}' for word, count in sorted(counts.items())) or 'no answers'}"
    )
    return 1 if failed else 0


def _lines(batch: Path, timeout: float | None) -> list[Line]:
    """The instances; `timeout` replaces the file's third column. Raises UserError, naming the line."""
    try:
        rows = list(csv.reader(batch.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--batch {batch} cannot be read: {_brief(error)}") from None
    found = []
    for number, row in enumerate(rows, start=1):
        if not "".join(row).strip():
            continue
        try:
            onnx, vnnlib, *rest = (part.strip() for part in _whole_list(row))
            seconds = float(rest[0]) if timeout is None else timeout
            networks_in(onnx)
        except (ValueError, IndexError):
            raise UserError(f"{batch}, line {number}: write onnx,vnnlib,timeout") from None
        if not 0 < seconds < math.inf:
            raise UserError(f"{batch}, line {number}: the timeout must be above 0 seconds, not {seconds:g}")
        found.append(Line(onnx, vnnlib, seconds))
    if not found:
        raise UserError(f"{batch} has no instances: write one onnx,vnnlib,timeout a line")
    return found


def _whole_list(row: list[str]) -> list[str]:
    """The columns of a line whose first may be a list with commas of its own and no quotes around it."""
    if not row[0].lstrip().startswith("["):
        return row
    last = next(i for i, part in enumerate([*row, "]"]) if part.rstrip().endswith("]"))
    return [",".join(row[: last + 1]), *row[last + 1 :]]


def _brief(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _finished(results: Path, folder: Path, contents: Contents) -> list[list[str]]:
    """The rows of earlier calls, without those of the batch in `folder` that are run again.

    These are errors, and answers about files that have changed since, which is said.
    """
    kept, changed = [], 0
    for category, onnx, vnnlib, *rest in _whole(results):
        other = category == folder.name and contents.differ(
            (category, onnx, vnnlib), _digest(folder, onnx, vnnlib)
        )
        changed += other
        if category != folder.name or (rest[1] != "error" and not other):
            kept.append([category, onnx, vnnlib, *rest])
    if changed:
        print(f"the files of {changed} answers in {results} have changed since: they are run again")
    return kept


def _digest(folder: Path, onnx: str, vnnlib: str) -> str:
    try:
        networks = networks_in(onnx)
    except ValueError:
        return ""
    return digest_of(*(present(folder / path) for path in (*(path for _, path in networks), vnnlib)))


def _whole(results: Path) -> list[list[str]]:
    """The rows of a results file, without one that was cut off."""
    try:
        text = results.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--results {results} cannot be read: {_brief(error)}") from None
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.reader(whole.splitlines()) if len(row) == 6]


def _text(rows: list[list[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _append(results: Path, category: str, line: Line, answer: Answer) -> None:
    seconds = f"{answer.prepare_seconds:.3f}", f"{answer.seconds:.3f}"
    row = [category, line.onnx, line.vnnlib, seconds[0], answer.result, seconds[1]]
    with results.open("a", encoding="utf-8") as stream:
        stream.write(_text([row]))
        stream.flush()
        os.fsync(stream.fileno())


def _witness_name(line: Line) -> str:
    names = (*(path for _, path in networks_in(line.onnx)), line.vnnlib)
    stems = [Path(name).name.removesuffix(".gz").rsplit(".", 1)[0] for name in names]
    return f"{'_'.join(stems)}.counterexample"
