"""This run against a baseline, sample by sample; needs no torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pyarrow

from bench.outcomes import KEYS, NETWORK
from models.errors import UserError

SAMPLE = [*KEYS, "index"]
KEPT = [*SAMPLE, "label", "clean", "success", "certified", "distance"]
# Distances that differ by less than this factor are the same: another CPU rounds otherwise.
SLACK = 1.01


@dataclass(frozen=True)
class Move:
    """One cell against its baseline: which samples got worse and better, and both numbers.

    `other`: the network is not the baseline's. The numbers are accuracies, or median distances (`minimal`)
    where the smallest perturbation is sought.
    """

    cell: str
    n: int
    before: float
    after: float
    worse: tuple[int, ...]
    better: tuple[int, ...]
    missing: bool = False
    minimal: bool = False
    other: bool = False

    def line(self) -> str:
        """One line that names the cell, both numbers and the samples that got worse."""
        if self.missing:
            return f"{self.cell}: in the baseline ({self._number(self.before)}) but not in this run"
        named = f", worse on samples {', '.join(map(str, self.worse[:10]))}" if self.worse else ""
        more = f" and {len(self.worse) - 10} more" if len(self.worse) > 10 else ""
        whose = "another network than the baseline's, " if self.other else ""
        return (
            f"{self.cell}: {whose}{self._number(self.before)} -> {self._number(self.after)} of {self.n}, "
            f"{len(self.worse)} worse, {len(self.better)} better{named}{more}"
        )

    def _number(self, value: float) -> str:
        return f"median distance {value:.4g}" if self.minimal else f"{100 * value:.1f} %"


def save_baseline(outcomes: pd.DataFrame, path: Path) -> None:
    """Stores what `compare` needs of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    outcomes[[*KEPT, NETWORK]].sort_values(SAMPLE, ignore_index=True).to_parquet(
        path, index=False, compression="zstd"
    )


def load_baseline(path: Path, matrix: str = "ci") -> pd.DataFrame:
    """A stored baseline of `matrix`; raises UserError where it is absent or cannot be read."""
    if not path.exists():
        other = "" if matrix == "ci" else f" --matrix {shlex.quote(matrix)}"
        raise UserError(
            f"no baseline {path}: make one with: "
            f"python -m bench check --update{other} --baseline {shlex.quote(str(path))}"
        )
    try:
        frame = pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError, ValueError):
        raise UserError(f"baseline {path} is damaged: restore it from version control") from None
    missing = [name for name in KEPT if name not in frame.columns]
    if missing:
        raise UserError(f"{path} is no baseline: it lacks {', '.join(missing)}")
    if not len(frame):
        raise UserError(f"baseline {path} has no rows, so that anything would pass: --update it")
    return frame


def note_on(baseline: pd.DataFrame, path: Path) -> str:
    """What a user should know of a baseline that names no networks, "" of any other one."""
    if NETWORK in baseline:
        return ""
    return (
        f"{path} is older than the rule for other networks: yours is taken for the same network, and what "
        "attacks newly break for better attacks; --update from the released network tells them apart"
    )


def _worth(frame: pd.DataFrame) -> pd.Series:
    """What a judge achieved on each sample: an attack's success or a certificate's proof."""
    proof = frame["kind"] == "certificate"
    return (frame["clean"] & frame["success"] & ~proof) | (frame["certified"] & proof)


def compare(baseline: pd.DataFrame, outcomes: pd.DataFrame) -> list[Move]:
    """One Move per cell of the baseline, in order.

    Worse is a sample that its attack no longer breaks, that its certificate no longer proves, whose
    clean prediction is now wrong, or whose smallest perturbation grew; better is the reverse. Where the
    network is not the baseline's, it is judged and not its attacks: worse is then what they newly break, or
    break closer by. Raises UserError where no cell is in both.
    """
    moves = []
    now = dict(list(outcomes.groupby(KEYS, dropna=False, sort=True)))
    order = {_plain(key): key for key in now}
    for key, old in baseline.groupby(KEYS, dropna=False, sort=True):
        name, minimal = _title(dict(zip(KEYS, key, strict=True))), bool(old["eps"].isna().all())
        new = now[order[_plain(key)]] if _plain(key) in order else old.iloc[:0]
        if not set(old["index"]) <= set(new["index"]):
            moves.append(Move(name, len(old), _score(old), float("nan"), (), (), True, minimal))
            continue
        old = old.set_index("index")
        new = new.set_index("index").loc[old.index]
        other = NETWORK in old and not old[NETWORK].equals(new[NETWORK])
        worse_of = _weaker if other else _worse
        lost, won = worse_of(old, new), worse_of(new, old)
        worse, better = tuple(map(int, old.index[lost])), tuple(map(int, old.index[won & ~lost]))
        moves.append(Move(name, len(old), _score(old), _score(new), worse, better, False, minimal, other))
    if moves and all(move.missing for move in moves):
        raise UserError(
            f"the baseline has no cell in common with this run, the first is {moves[0].cell}: "
            "compare with the matrix, the images and the models that it was made with, or --update it"
        )
    return moves


def _worse(old: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
    """Which samples are worse in `new` than in `old`."""
    farther = old["eps"].isna() & _worth(old) & (new["distance"] > SLACK * old["distance"])
    return (_worth(old) & ~_worth(new)) | (old["clean"] & ~new["clean"]) | farther


def _weaker(old: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
    """Which samples the network of `new` holds worse than that of `old`."""
    proof = old["kind"] == "certificate"
    broken, before = _worth(new) & ~proof, _worth(old) & ~proof
    closer = old["eps"].isna() & broken & before & (SLACK * new["distance"] < old["distance"])
    unproved = proof & old["certified"] & ~new["certified"]
    return (old["clean"] & broken & ~before) | closer | unproved | (old["clean"] & ~new["clean"])


def _plain(key: tuple[object, ...]) -> tuple[object, ...]:
    return tuple("" if isinstance(part, float) and part != part else part for part in key)


def _title(named: dict[str, object]) -> str:
    eps = named["eps"]
    radius = "minimal" if isinstance(eps, float) and eps != eps else f"{eps:g}"
    return f"{named['data']} | {named['defended']} | {named['judge']} | {named['norm']}-{radius}"


def _score(frame: pd.DataFrame) -> float:
    """The accuracy, or the median distance for a minimal attack, infinite where it finds nothing."""
    if bool(frame["eps"].isna().all()):
        return float(frame["distance"].fillna(float("inf")).median())
    proof = frame["kind"] == "certificate"
    held = (proof & frame["certified"]) | (~proof & ~frame["success"] & frame["clean"])
    return float(held.mean())


def junit(moves: list[Move], allow: int) -> str:
    """The comparison as JUnit XML: one test case a cell."""
    bad = [move for move in moves if regressed(move, allow)]
    suite = ElementTree.Element(
        "testsuite", name="rhobust check", tests=str(len(moves)), failures=str(len(bad)), errors="0"
    )
    for move in moves:
        case = ElementTree.SubElement(suite, "testcase", classname="rhobust.check", name=move.cell)
        if move in bad:
            ElementTree.SubElement(case, "failure", message=move.line())
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def regressed(move: Move, allow: int) -> bool:
    """Whether a cell got worse on more than `allow` samples, or is gone."""
    return move.missing or len(move.worse) > allow


def summary(moves: list[Move], baseline: Path, allow: int) -> str:
    """One line: how many cells regressed, and how many samples a cell would have to be allowed."""
    bad = sum(regressed(move, allow) for move in moves)
    most = max((len(move.worse) for move in moves), default=0)
    slack = f" (up to {most} samples of a cell are worse, see --allow)" if most > allow else ""
    return f"{len(moves)} cells compared with {baseline}: {bad} regressions{slack}"
