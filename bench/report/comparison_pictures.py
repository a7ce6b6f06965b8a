"""Pictures of the samples that changed between two sides: the images, and what the attacks made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from bench.report.comparison import Side
from bench.report.grid import Picture, slug
from bench.report.pictures import Example, examples, panel, png


def pictures(side: Side, samples: pd.DataFrame) -> list[Example]:
    """What the run of a side kept of the changed samples: before the attack, the change, and after."""
    found = []
    for subject in side.subjects().values():
        mine = samples[(samples["data"] == subject.data) & samples["model"].isin((subject.defended, ""))]
        wanted = set(zip(mine["norm"], mine["index"], strict=True))
        for record in subject.records if wanted else ():
            kept = examples(record, side.report.material.folders, f"images/{slug(side.name)}")
            found += [
                replace(one, caption=f"{record.cell.judge.label}: {one.caption}")
                for one in kept
                if (record.cell.threat.norm, one.index) in wanted
            ]
    return sorted(found, key=lambda one: one.index or 0)


def originals(side: Side, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Picture]:
    """Pictures of the images at `places` (data set, index), as far as the side's runs kept them."""
    proofs = [(r.cell.data, r.header.provenance) for r in side.report.material.records]
    hashes = {data: proof.data_sha256 for data, proof in proofs if proof is not None}
    folders = side.report.material.folders
    kept = {data: panel(folders, digest) for data, digest in hashes.items()}
    return {
        (data, index): Picture(
            f"images/{slug(data)}/{index}.png", png(kept[data][index]), f"Image {index}, unperturbed"
        )
        for data, index in places
        if index in kept.get(data, {})
    }
