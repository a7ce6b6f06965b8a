"""A report: the material of one or more runs with everything that the pages show, computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bench.analysis.stored import Analysis
from bench.analysis.stored import read as read_analyses
from bench.outcomes import contradictions
from bench.report.audits import audits_of
from bench.report.boards import Board, boards
from bench.report.material import Material, read
from bench.report.notebook import notebook_view
from bench.report.subject import Subject, subjects
from bench.tables import Table, not_run


@dataclass(frozen=True)
class Report:
    """Everything that the pages of one report show; a pure function of its material."""

    material: Material

    @classmethod
    def of(cls, *folders: str | Path) -> Report:
        """The report of one or more run folders; raises UserError as `material.read` does."""
        return cls(read([Path(folder) for folder in folders] or [Path("results")]))

    @cached_property
    def subjects(self) -> list[Subject]:
        """The defended models, by data set and name, with the audits of their networks."""
        found = subjects(self.material.records)
        return [replace(one, audits=audits_of(one.records, self.analyses[0])) for one in found]

    @cached_property
    def boards(self) -> list[Board]:
        """The leaderboards, by data set and threat."""
        return boards(self.subjects)

    @cached_property
    def contradictions(self) -> list[str]:
        """Certified samples that an attack breaks, over all models."""
        measured = [subject.outcomes for subject in self.subjects if len(subject.outcomes)]
        return [line for outcomes in measured for line in contradictions(outcomes)]

    @cached_property
    def not_run(self) -> Table:
        """Skipped and failed cells with their reasons."""
        return not_run(record.header for record in self.material.records)

    @cached_property
    def analyses(self) -> tuple[list[Analysis], list[str]]:
        """What `analyse` left beside the runs, and a line for each file of it that cannot be read."""
        return read_analyses(self.material.folders)

    def _repr_html_(self) -> str:
        return notebook_view(self.boards)
