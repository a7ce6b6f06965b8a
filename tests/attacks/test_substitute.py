from __future__ import annotations

import pytest
import torch

from attacks.access import LabelAccess
from attacks.pgd import PGD
from attacks.substitute import Substitute
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import Counting, images, labelled, mlp

SMALL = {"hidden": 16, "updates": 20}
THREAT = ThreatModel("linf", 0.2)


def test_transfer_lies_between_noise_and_white_box():
    model, data = load(ModelName.parse("fc500-150-10")), load_data("mnist5k")
    panel = data.panel(None)
    batch, aside = data.batch(panel[:200]), data.batch(panel[-300:])
    attack = Substitute(rounds=3, updates=100)
    result = attack.run(model, batch, THREAT, Randomness(0), aside)
    noise = THREAT.project(batch.x, batch.x + 0.2 * Randomness(1).sign(batch.index, batch.x.shape[1:]))
    scored = result.clean
    random = float((model.logits(noise).argmax(1) != batch.y)[scored].float().mean())
    stolen = float(result.success[scored].float().mean())
    white_box = float(PGD().run(model, batch, THREAT, Randomness(0)).success[scored].float().mean())
    assert random + 0.08 < stolen < white_box
    assert result.shared_forward == 150 * 2**3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"seeds": 10, "rounds": 0}, 10),
        ({"seeds": 10, "rounds": 3}, 80),
        ({"seeds": 10, "rounds": 6, "queries": 100}, 100),
        ({"seeds": 10, "rounds": 4, "queries": 10}, 10),
        ({"seeds": 500, "rounds": 1}, 80),
    ],
)
def test_labels_are_counted_exactly(settings, expected):
    """`aside` has 40 images: more seeds than that are not there to be had."""
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch, aside = labelled(model, images(12)), labelled(model, images(40, seed=7))
    counter.forward_samples = 0
    result = Substitute(**SMALL, **settings).run(model, batch, THREAT, Randomness(0), aside)
    assert result.shared_forward == expected
    assert counter.forward_samples == expected + 2 * len(batch)
    assert counter.backward_samples == 0
    assert int(result.forward.sum()) == 0


def test_the_defaults_stay_within_the_papers_budget():
    attack = Substitute()
    assert attack.seeds * 2**attack.rounds == attack.queries == 9600


def test_augmented_images_stay_in_the_box():
    seen = []

    class Spy(LabelAccess):
        def labels(self, x, rows):
            seen.append(x)
            return super().labels(x, rows)

    box = Box(-0.5, 0.5)
    model = mlp()
    model.box = box
    aside = labelled(model, images(40, box=box))
    attack = Substitute(seeds=20, rounds=3, step=0.4, **SMALL)
    attack.fit(Spy(model, 0), aside, ThreatModel("linf", 0.1, box), Randomness(0))
    assert [len(x) for x in seen] == [20, 20, 40, 80]
    assert all(bool(box.contains(x).all()) for x in seen)
    moved = (seen[1] - seen[0]).abs()
    inside = (seen[1] > -0.5) & (seen[1] < 0.5)
    torch.testing.assert_close(moved[inside], torch.full_like(moved[inside], 0.4))


def test_the_substitute_learns_the_oracle():
    model = mlp(classes=3)
    aside = labelled(model, images(150, seed=7))
    fitted = Substitute(rounds=2, updates=200, hidden=32).fit(
        LabelAccess(model, 0), aside, THREAT, Randomness(0)
    )
    fresh = labelled(model, images(200, seed=8))
    agreement = (fitted.logits(fresh.x).argmax(1) == fresh.y).float().mean()
    assert float(agreement) > 0.8


def test_seeds_change_the_substitute_and_nothing_else_does():
    model = mlp()
    aside = labelled(model, images(40))

    def weights(seed):
        fitted = Substitute(**SMALL, rounds=1).fit(LabelAccess(model, 0), aside, THREAT, Randomness(seed))
        return next(fitted.parameters())

    torch.manual_seed(1)
    first = weights(0)
    torch.manual_seed(2)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="seeds <= queries"):
        Substitute(seeds=20, queries=10)
    with pytest.raises(UserError, match="white-box"):
        Substitute(attack=Substitute())
