"""`smallest`: the proven least distance of adversarial examples, and how near to it attacks come."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from bench.commands.evaluate import opened
from bench.optimality import optimality
from models.atomic import check_writable, write_atomically


def execute(
    model: str,
    data: str,
    norm: str,
    limit: int,
    attacks: tuple[str, ...],
    seconds: float,
    tolerance: float,
    out: Path | None,
    root: Path | None,
    download: bool,
    device: str,
    seed: int,
) -> int:
    """Reports each sample's interval on stderr, then prints the attacks' table; returns the exit code.

    `out` has the rows of the finished samples at any time.
    """
    classifier, batch = opened(model, data, limit, root, download, device)
    if out is not None:
        check_writable(out.parent)

    rows: list[pd.Series] = []

    def progress(place: int, row: pd.Series) -> None:
        rows.append(row)
        if out is not None:
            finished = pd.DataFrame(rows).assign(index=batch.index[: len(rows)].tolist())
            write_atomically(out, finished.to_csv(index=False).encode())
        state = "closed" if row["closed"] else "open"
        name = f"image {batch.index[place]}"
        print(
            f"[{place + 1}/{len(batch)}] {name}: [{row['lower']:.5f}, {row['upper']:.5f}] {state}, "
            f"{row['seconds']:.1f} s",
            file=sys.stderr,
        )

    result = optimality(
        classifier, batch.x, batch.y, norm=norm, attacks=attacks or None, seconds=seconds,
        tolerance=tolerance, seed=seed, progress=progress,
    )  # fmt: skip
    samples = result.samples
    kept = samples[samples["correct"]]
    print(f"{model}, {norm}, {len(kept)} of {len(samples)} images classified correctly, ", end="")
    print(f"{int(kept['closed'].sum())} closed within {100 * tolerance:g} %")
    print(result.table().to_string(index=False))
    return 0
