"""Worker processes: what they inherit, and runs that have nothing left to give them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.commands import run
from bench.executors.local import LocalExecutor
from bench.plan import Plan
from bench.store import Store
from tests.bench.builders import cell


def interrupts_are_held(_: int) -> bool:
    """Whether this process was born with SIGINT blocked."""
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_ctrl_c_cannot_kill_a_worker_that_is_still_starting() -> None:
    with LocalExecutor(1) as executor:
        assert executor.call(interrupts_are_held, 0)
    assert not interrupts_are_held(0)


class Nobody:
    """An executor that trains without a sound."""

    def __init__(self, workers: int) -> None: ...

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *_: object) -> None: ...

    def call(self, function: Any, item: Any) -> None: ...


def test_retraining_to_weights_that_were_judged_before_leaves_nothing_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = Plan((cell(),), ())
    monkeypatch.setattr(run, "LocalExecutor", Nobody)
    monkeypatch.setattr(run, "card_hash", lambda name: "untrained")
    monkeypatch.setattr(run, "plan_of", lambda request: (plan, "mine"))
    monkeypatch.setattr(run, "pending", lambda plan, store: [])
    request = run.Request(matrix="mine", device="cpu", out=tmp_path)
    assert run.run_missing(plan, [cell()], Store(tmp_path), request, Console()) == plan
