"""A black-box attack by a substitute: query labels, train a copy, attack the copy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.access import GradientAccess, LabelAccess
from attacks.base import Attack, register_attack
from attacks.transfer import determined
from models.base import Batch, Classifier, frozen
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


def new_substitute(inputs: int, hidden: int, classes: int, generator: torch.Generator) -> nn.Sequential:
    """inputs - hidden - hidden - classes with ReLU, its weights drawn from `generator` alone."""
    # skip_init: an ordinary Linear would draw its first weights from the global generator.
    layers = [
        nn.utils.skip_init(nn.Linear, a, b)
        for a, b in ((inputs, hidden), (hidden, hidden), (hidden, classes))
    ]
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


@register_attack("substitute")
@dataclass(frozen=True, kw_only=True)
class Substitute(Attack):
    """Fools an oracle that gives labels only, with at most `queries` labels asked for in all.

    From `seeds` images, each round trains a small network on the labelled set S and adds
    {x + step sign(grad F_{O(x)}(x)) : x in S} to it, clipped to the box, as long as labels are
    left: a last round that would exceed `queries` is cut. `attack`, a white-box attack, is then run on the
    substitute within the threat model, and its points go to the oracle without further queries.
    150 seeds and 6 rounds ask for 150 * 2^6 = 9600 labels.
    Source: Papernot, McDaniel, Goodfellow, Jha, Celik, Swami 2017, 1602.02697, algorithm 1.
    """

    paper = "Papernot et al. 2017, 1602.02697"
    norms = ("linf", "l2", "l1")
    access = "labels"
    fitted = True
    cost = Cost.MEDIUM

    seeds: int = 150
    rounds: int = 6
    queries: int = 9600
    step: float = 0.1
    hidden: int = 128
    updates: int = 150
    learning_rate: float = 2e-3
    attack: Attack = field(default_factory=determined)

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= self.queries:
            raise UserError(f"substitute needs 1 <= seeds <= queries, not {self.seeds} and {self.queries}")
        if self.attack.access != "gradients" or self.attack.fitted:
            raise UserError(f"substitute needs a white-box attack without fitting, not '{self.attack.name}'")

    def fit(
        self, model: LabelAccess, aside: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Classifier:
        """The substitute, trained on at most `queries` labels."""
        place = torch.arange(len(aside))
        order = randomness.child("seeds").uniform(place, (1,))[:, 0].argsort()[: self.seeds]
        x = aside.x[order.to(aside.x.device)]
        y = model.labels(x, None)
        generator = randomness.child("training").generator()
        network = new_substitute(math.prod(x.shape[1:]), self.hidden, model.num_classes, generator).to(x)
        substitute = Classifier(network, num_classes=model.num_classes, box=model.box, name="substitute")
        for _ in range(self.rounds):
            self._train(network, x, y, generator)
            room = self.queries - len(x)
            if not room:
                return substitute
            new = self._augment(substitute, x[:room], y[:room], threat)
            x, y = torch.cat([x, new]), torch.cat([y, model.labels(new, None)])
        self._train(network, x, y, generator)
        return substitute

    def _augment(self, substitute: Classifier, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        with frozen(substitute):
            view = GradientAccess(substitute, len(x))
            # The logarithm has the same sign and does not underflow where F is sure.
            _, _, slope = view.gradient(x, None, lambda z: -functional.cross_entropy(z, y, reduction="none"))
        return threat.box.clamp(x + self.step * threat.box.width * slope.sign())

    def _train(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        with torch.enable_grad():
            for _ in range(self.updates):
                rows = torch.randint(len(x), (min(128, len(x)),), generator=generator).to(x.device)
                optimizer.zero_grad()
                functional.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()

    def propose(
        self,
        model: LabelAccess,
        batch: Batch,
        threat: ThreatModel,
        randomness: Randomness,
        fitted: Classifier,
    ) -> Tensor:
        if threat.norm not in self.attack.norms:
            raise UserError(f"attack '{self.attack.name}' has no norm '{threat.norm}'")
        with frozen(fitted):
            view = GradientAccess(fitted, len(batch))
            return self.attack.propose(view, batch, threat, randomness.child("substitute"), None)
