"""Matrices in TOML: what is accepted, and one line that names file and place for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.spec import MatrixSpec, matrix_names, read_matrix
from models.cost import Cost
from models.errors import UserError

GOOD = """data = "mnist5k"
models = ["lenet"]
attacks = ["fgsm"]
threats = [
    { norm = "linf", eps = "8/255" },
    { norm = "l2", eps = 0.5 },
    { norm = "l2", images = 7 },
]

[images]
cheap = 50
medium = 30
expensive = 20
extreme = 0

[parameters.pgd]
steps = 7
"""


def written(folder: Path, text: str | bytes) -> str:
    """The path of a matrix file with this text."""
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refusal(folder: Path, text: str | bytes) -> str:
    """The one line with which the matrix is refused; it names the file."""
    with pytest.raises(UserError) as caught:
        read_matrix(written(folder, text))
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder / "mine.toml") in line
    return line


def test_what_is_read(tmp_path: Path) -> None:
    spec = read_matrix(written(tmp_path, GOOD))
    assert spec.name == "mine"
    assert [(threat.norm, threat.eps, threat.images) for threat in spec.threats] == [
        ("linf", 8 / 255, None),
        ("l2", 0.5, None),
        ("l2", None, 7),
    ]
    assert spec.images == {Cost.CHEAP: 50, Cost.MEDIUM: 30, Cost.EXPENSIVE: 20, Cost.EXTREME: 0}
    assert spec.parameters == {"pgd": {"steps": 7}}
    assert (spec.defenses, spec.certificates, spec.sources) == (("*",), ("*",), ("*",))


@pytest.mark.parametrize("name", matrix_names())
def test_shipped_matrices_are_valid(name: str) -> None:
    assert read_matrix(name).name == name


def test_the_shipped_matrices() -> None:
    assert {"ci", "full", "quick", "zoo"} <= set(matrix_names())
    full, zoo = read_matrix("full"), read_matrix("zoo")
    assert full.models == full.sources == ("lenet", "fc500-150-10", "conv-small")
    assert zoo.models == zoo.sources == ("*",)
    for matrix in (full, zoo):
        assert matrix.defenses == matrix.attacks == matrix.certificates == ("*",)
        assert max(matrix.images.values()) == 200


BROKEN = {
    "an open string": (GOOD.replace('"lenet"', '"lenet'), "line 2"),
    "no value": (GOOD.replace('attacks = ["fgsm"]', "attacks ="), "line 3"),
    "a key twice": (GOOD.replace('attacks = ["fgsm"]', 'data = "mnist"'), "line 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unreadable_toml_names_file_and_line(case: str, tmp_path: Path) -> None:
    text, line = BROKEN[case]
    assert line in refusal(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    assert "not valid TOML" in refusal(tmp_path, b'data = "\xff\xfe"\n')


INVALID = {
    "unknown key": (GOOD.replace("data =", "dataa ="), ("line 1", "dataa", "did you mean data")),
    "unknown key of a threat": (GOOD.replace("eps = 0.5", "epsilon = 0.5"), ("line 4", "epsilon")),
    "a cost class that is none": (
        GOOD.replace("images = 7", 'dearest = "dear"'),
        ("line 4", "dearest", "cheap, medium, exp"),
    ),
    "a threat without images": (GOOD.replace("images = 7", "images = 0"), ("line 4", "images", "1")),
    "negative eps": (GOOD.replace("0.5", "-0.5"), ("line 4", "-0.5", ">= 0")),
    "eps that is no number": (GOOD.replace("8/255", "tiny"), ("line 4", "tiny", "8/255")),
    "eps that is not finite": (GOOD.replace("0.5", "inf"), ("line 4", "inf")),
    "eps that is a list": (GOOD.replace("0.5", "[0.5]"), ("line 4", "eps")),
    "eps that is a truth value": (GOOD.replace("0.5", "true"), ("line 4", "eps")),
    "unknown norm": (GOOD.replace('"l2"', '"l3"'), ("line 4", "l3", "linf, l2, l1")),
    "no norm": (GOOD.replace('norm = "l2", eps = 0.5', "eps = 0.5"), ("line 4", "linf, l2, l1")),
    "a threat that is no table": (
        GOOD.replace('{ norm = "l2", eps = 0.5 }', '"l2-0.5"'),
        ("line 4", "threats"),
    ),
    "threats that are no list": (
        "threats = 3\n" + GOOD[GOOD.index("[images]") :],
        ("line 1", "threats"),
    ),
    "missing cost class": (GOOD.replace("extreme = 0\n", ""), ("line 10", "extreme")),
    "unknown cost class": (GOOD.replace("extreme", "dear"), ("line 10", "images", "cheap, medium, exp")),
    "a name that is no list": (GOOD.replace('["lenet"]', '"lenet"'), ("line 2", 'a list like ["..."]')),
    "negative images": (GOOD.replace("cheap = 50", "cheap = -1"), ("line 10", ">= 0")),
    "models that are no list": (GOOD.replace('["lenet"]', "3"), ("line 2", "models", 'a list like ["..."]')),
    "parameters that are no table": (
        GOOD.replace("steps = 7", "").replace("[parameters.pgd]", "[parameters]\npgd = 3"),
        ("line 16", "parameters"),
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_values_that_are_not_valid_name_file_line_and_field(case: str, tmp_path: Path) -> None:
    text, words = INVALID[case]
    line = refusal(tmp_path, text)
    assert [word for word in words if word not in line] == []


def test_no_threats_at_all(tmp_path: Path) -> None:
    line = refusal(tmp_path, GOOD[GOOD.index("[images]") :])
    assert line.endswith("threats is missing: add it")
    assert refusal(tmp_path, GOOD[: GOOD.index("[images]")]).endswith("images is missing: add it")


def test_names_that_are_no_matrix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean quick"):
        read_matrix("quik")
    with pytest.raises(UserError, match=r"no matrix file .*absent\.toml"):
        read_matrix(str(tmp_path / "absent.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UserError, match=r"folder\.toml"):
        read_matrix(str(tmp_path / "folder.toml"))


def test_limits() -> None:
    spec = read_matrix("quick")
    limited: MatrixSpec = spec.limited(10)
    assert limited.images == {cost: min(10, n) for cost, n in spec.images.items()}
    assert spec.limited(None) is spec
    for bad in (0, -1):
        with pytest.raises(UserError, match="--limit must be at least 1"):
            spec.limited(bad)
