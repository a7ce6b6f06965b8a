"""The command `detect`: its report, its curves, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.cli import main


def test_the_report_and_the_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["detect", "conv-small", "--detector", "pca-tail(components=50)", "--eps", "0.2", "--limit", "20"]
    assert main([*line, "--roc", str(tmp_path / "roc.csv")]) == 0
    shown = capsys.readouterr().out
    assert "unaware" in shown
    assert "clean images flagged" in shown
    curves = pd.read_csv(tmp_path / "roc.csv")
    assert set(curves["adversary"]) == {"unaware", "aware"}
    assert curves["tpr"].between(0, 1).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--detector", "pca-tial"], "did you mean pca-tail"),
        (["--detector", "pca-tail", "--limit", "0"], "--limit"),
        (["--detector", "pca-tail", "--limit", "5000"], "lower --limit"),
        (["--detector", "pca-tail", "--rate", "0"], "between 0 and 1"),
        (["--detector", "pca-tail", "--norm", "linf", "--eps", "40"], "beyond the box"),
    ],
)
def test_mistakes_cost_one_line(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "conv-small", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
