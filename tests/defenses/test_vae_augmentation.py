"""Augmentation behind a judge: by hand, with a liar for a generator, and what the judge throws out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses import vae_augmentation
from defenses.vae_augmentation import VAEAugmentation, keep_rate
from defenses.zoo import ModelName
from models.base import Batch
from models.data import Dataset, load_data
from models.errors import UserError
from models.generator import GENERATORS
from models.randomness import Randomness


def liar(batch: Batch, randomness: Randomness) -> Tensor:
    """The image of another class in place of every second one."""
    other = batch.x.roll(1, 0)
    return torch.where((batch.index % 2 == 0)[:, None, None, None], batch.x, other)


@pytest.fixture(autouse=True)
def lying() -> Iterator[None]:
    GENERATORS.add("liar", liar)
    yield
    del GENERATORS._entries["liar"]


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def digits(n: int) -> Batch:
    """Digits of the panel, whose neighbours are of other classes."""
    data = load_data("mnist5k")
    some = data.batch(data.panel(n))
    return Batch(some.x, some.y, torch.arange(n))


def test_a_liars_images_are_thrown_out_and_only_those() -> None:
    some = digits(200)
    made, kept = VAEAugmentation(generator="liar").generated(some, Randomness(0))
    honest = some.index % 2 == 0
    assert torch.equal(made[honest], some.x[honest])
    assert int(kept[~honest].sum()) <= 1
    assert float(kept[honest].double().mean()) > 0.9


def test_the_loss_is_the_mean_over_both_parts() -> None:
    some, net = digits(60), network()
    for share in (0.3, 0.5):
        defense = VAEAugmentation(generator="liar", share=share)
        made, kept = defense.generated(some, Randomness(0))
        real = functional.cross_entropy(net(some.x), some.y)
        fake = functional.cross_entropy(net(made[kept]), some.y[kept])
        expected = float(((1 - share) * real + share * fake).detach())
        found = float(defense.loss(net, some, 0.5, Randomness(0)).detach())
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("defense", [VAEAugmentation(share=0.0), VAEAugmentation(threshold=1.0)])
def test_without_a_share_or_with_a_judge_nobody_satisfies_it_is_ordinary_training(
    defense: VAEAugmentation,
) -> None:
    some, net = digits(30), network()
    plain = functional.cross_entropy(net(some.x), some.y)
    assert float(defense.loss(net, some, 0.5, Randomness(0)).detach()) == float(plain.detach())


def test_a_stricter_judge_keeps_a_part_of_what_a_milder_one_keeps() -> None:
    some, before = digits(150), None
    for threshold in (0.0, 0.5, 0.9, 0.999):
        _, kept = VAEAugmentation(threshold=threshold).generated(some, Randomness(0))
        assert before is None or not bool((kept & ~before).any())
        before = kept
    rates = [keep_rate(VAEAugmentation(threshold=t), digit_set(), seed=0) for t in (0.0, 0.9)]
    assert rates[0] == 1.0
    assert 0.2 < rates[1] < 0.9


def digit_set() -> Dataset:
    data = load_data("mnist5k")
    order = data.panel(700)
    return Dataset("some", data.pixels[order], data.labels[order], 10)


def test_generated_images_belong_to_the_sample_and_change_by_epoch() -> None:
    some, defense = digits(20), VAEAugmentation()
    made, _ = defense.generated(some, Randomness(0))
    alone = torch.cat([defense.generated(some[i : i + 1], Randomness(0))[0] for i in range(20)])
    assert torch.allclose(made, alone, atol=1e-6)
    assert not torch.allclose(made, defense.generated(some, Randomness(1))[0])


def test_without_the_judge_the_liars_labels_spoil_the_network() -> None:
    """Half of the liar's images carry a wrong label: with the judge the network learns, without it not."""
    some, held = digits(400), digits(1000)[400:]
    right = []
    for threshold in (0.9, 0.0):
        net = network()
        defense = VAEAugmentation(generator="liar", threshold=threshold, share=1.0)
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(60):
            optimizer.zero_grad()
            defense.loss(net, some, 0.5, Randomness(0)).backward()
            optimizer.step()
        right.append(float((net(held.x).argmax(1) == held.y).double().mean()))
    assert right[0] > right[1] + 0.03


def test_the_judge_takes_no_part_in_training() -> None:
    judge = vae_augmentation.static_network("fc500-150-10", torch.device("cpu"))
    VAEAugmentation().loss(network(), digits(20), 0.5, Randomness(0)).backward()
    assert all(parameter.grad is None for parameter in judge.parameters())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conv-small+vae-augmentation(generator=pose)", "did you mean poses"),
        ("conv-small+vae-augmentation(judge=lenett)", "did you mean lenet"),
        ("conv-small+vae-augmentation(share=2)", "share between 0 and 1"),
        ("linear-3-7+vae-augmentation", "is for mnist-3-7"),
    ],
)
def test_impossible_parameters_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelName.parse(text).parts()
