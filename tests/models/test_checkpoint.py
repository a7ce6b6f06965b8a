"""Weights on disk: bit for bit, with a card that matches, and one line for what is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import weights
from defenses.zoo import ModelName, load
from models.atomic import stem
from models.checkpoint import ModelCard, load_weights, places, read_card, save_weights
from models.errors import UserError

CARD: dict[str, Any] = {
    "name": "tiny",
    "architecture": "tiny",
    "defense": {"name": "none"},
    "recipe": {"epochs": 1},
    "seed": 0,
    "data": "toy",
    "data_sha256": "d" * 64,
    "excluded": "mnist5k",
    "excluded_images": 5000,
    "accuracies": {"toy": 0.5},
    "version": "0.1.0",
    "torch": torch.__version__,
}
STATE = {
    "weight": torch.tensor([[1e-45, -0.0], [float(torch.finfo(torch.float32).max), 1 / 3]]),
    "strided": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "count": torch.tensor(7),
}
DAMAGE = {
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "garbage": lambda content: bytes(range(256)) * 4,
}


def stored(folder: Path) -> ModelCard:
    return save_weights("tiny", STATE, CARD, folder)


def one_line(refusal: pytest.ExceptionInfo[UserError], *words: str) -> None:
    line = str(refusal.value)
    assert "\n" not in line
    assert [word for word in words if word not in line] == []


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    card = stored(tmp_path)
    back = load_weights("tiny", tmp_path)
    assert set(back) == set(STATE)
    for name, value in STATE.items():
        assert back[name].dtype == value.dtype
        assert back[name].numpy().tobytes() == value.contiguous().numpy().tobytes()
    assert read_card("tiny", tmp_path) == card
    assert not list(tmp_path.glob(".*"))


def test_the_same_weights_have_the_same_hash_and_others_another(tmp_path: Path) -> None:
    card = stored(tmp_path / "a")
    assert stored(tmp_path / "b").weights_sha256 == card.weights_sha256
    other = {**STATE, "count": torch.tensor(8)}
    assert save_weights("tiny", other, CARD, tmp_path / "c").weights_sha256 != card.weights_sha256


def test_weights_without_a_card_and_a_card_without_weights_count_as_absent(tmp_path: Path) -> None:
    assert read_card("tiny", tmp_path) is None
    stored(tmp_path)
    weights_file, card_file = places("tiny", tmp_path)
    content = card_file.read_bytes()
    card_file.unlink()
    assert read_card("tiny", tmp_path) is None
    card_file.write_bytes(content)
    weights_file.unlink()
    assert read_card("tiny", tmp_path) is None


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_weights_are_one_clear_line(case: str, tmp_path: Path) -> None:
    stored(tmp_path)
    path, card = places("tiny", tmp_path)
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    with pytest.raises(UserError) as refusal:
        load_weights("tiny", tmp_path)
    one_line(refusal, str(path), "python -m bench train tiny")
    card.unlink()
    if case != "one bit":
        with pytest.raises(UserError, match="cannot be read"):
            load_weights("tiny", tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"name": "tiny"', b"\xff\xfe"])
def test_a_damaged_card_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    stored(tmp_path)
    places("tiny", tmp_path)[1].write_bytes(content)
    with pytest.raises(UserError, match="is damaged") as refusal:
        read_card("tiny", tmp_path)
    one_line(refusal, str(tmp_path / "tiny.json"))


def shipped(folder: Path, name: str = "fc500-150-10") -> tuple[Path, Path]:
    """A copy of a zoo member's files, to damage."""
    for place in places(name):
        if not place.exists():
            pytest.skip(f"{name} is not trained")
        shutil.copy(place, folder)
    return places(name, folder)


def test_a_truncated_zoo_member_is_one_clear_line(tmp_path: Path) -> None:
    path, _ = shipped(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="truncated or changed") as refusal:
        load(ModelName.parse("fc500-150-10"), folder=tmp_path)
    one_line(refusal, str(path), "python -m bench train fc500-150-10")


def test_weights_of_another_network_are_one_clear_line(tmp_path: Path) -> None:
    path, card = shipped(tmp_path)
    found = json.loads(card.read_bytes())
    save_weights("fc500-150-10", STATE, {key: found[key] for key in CARD}, tmp_path)
    with pytest.raises(UserError, match="do not fit the network") as refusal:
        load(ModelName.parse("fc500-150-10"), folder=tmp_path)
    one_line(refusal, str(path))


def test_the_hash_read_without_torch_is_the_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = stored(tmp_path)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    assert weights.card_hash("tiny") == card.weights_sha256[:16]
    assert weights.card_hash("other") == "untrained"
    places("tiny", tmp_path)[1].write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        weights.card_hash("tiny")


def test_a_name_too_long_for_a_file_is_shortened_and_stays_its_own(tmp_path: Path) -> None:
    long = "conv-small" + "+interval(eps=0.3,exponent=0.7,overshoot=1.05)" * 6
    other = long + "+small-boxes"
    for name, state in ((long, STATE), (other, {**STATE, "count": torch.tensor(8)})):
        save_weights(name, state, {**CARD, "name": name}, tmp_path)
    assert load_weights(long, tmp_path)["count"] == 7
    assert load_weights(other, tmp_path)["count"] == 8
    assert [card.name for card in (read_card(long, tmp_path), read_card(other, tmp_path)) if card] == [
        long,
        other,
    ]
    assert max(len(path.name.encode()) for path in tmp_path.iterdir()) < 220


def test_the_longest_name_that_is_kept_is_told_from_one_that_is_shortened() -> None:
    assert stem("é" * 100) == "é" * 100
    short = stem("é" * 101)
    assert len(short.encode()) <= 200
    assert short.startswith("é" * 90 + "é~")
    assert stem(short) == short != stem("é" * 102)
