"""Polish: of a colour image's many block flips those are tried that the gradient rates best."""

from __future__ import annotations

import torch
from torch import nn

from attacks.access import GradientAccess
from attacks.chains import Search
from attacks.polish import SHORTLIST, Flips
from models.base import Batch, Classifier, frozen
from models.threat import ThreatModel
from tests.builders import images, labelled


def linear(inputs: int) -> Classifier:
    network = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 2))
    with torch.no_grad():
        network[1].weight.normal_(generator=torch.Generator().manual_seed(0))
    return Classifier(network, num_classes=2)


def flips(model: Classifier, batch: Batch, eps: float) -> Flips:
    search = Search(GradientAccess(model, len(batch)), batch, ThreatModel("linf", eps), 1)
    return Flips(search, torch.tensor([0]))


def test_on_a_linear_network_the_shortlist_holds_the_best_flips_and_no_others():
    model = linear(3 * 28 * 28)
    batch = labelled(model, 0.2 + 0.6 * images(1, (3, 28, 28)))
    some = flips(model, batch, 0.05)
    assert some.count == 3 * SHORTLIST
    with frozen(model):
        every = torch.cat(
            [some.margins(some.apply(batch.x, flip[None]))[0] for flip in torch.arange(some.count)]
        )
        listed = some.each(batch.x)
    finite = listed.isfinite()
    assert int(finite.sum()) == SHORTLIST
    torch.testing.assert_close(listed[finite], every[finite])
    assert every[finite].max() <= every[~finite].min() + 1e-4


def test_a_grey_image_has_all_its_flips_tried():
    model = linear(28 * 28)
    batch = labelled(model, images(1, (1, 28, 28)))
    some = flips(model, batch, 0.05)
    with frozen(model):
        assert bool(some.each(batch.x).isfinite().all())
