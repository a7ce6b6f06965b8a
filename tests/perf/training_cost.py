"""Fills in what training cost in cards that are older: python -m tests.perf.training_cost DATA_ROOT."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn

from defenses.base import Defense
from defenses.training import channels_last
from defenses.zoo import ModelName, machine, training_data
from models.atomic import write_atomically
from models.checkpoint import SHIPPED, ModelCard, load_weights, places
from models.data import Dataset
from models.families import FAMILIES
from models.randomness import Randomness
from models.recipe import Recipe

SAMPLES = 24


def seconds_of_training(network: nn.Module, defense: Defense, recipe: Recipe, data: Dataset) -> float:
    """The steps of the recipe times the mean CPU time of SAMPLES of them, spread evenly over its course.

    A defence may change what it does on the way. CPU time of one thread is what an idle core needs.
    """
    channels_last(network).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
    spent = 0.0
    for k in range(SAMPLES + 1):
        progress = (max(k, 1) - 0.5) / SAMPLES
        start = time.process_time()
        batch = data.batch(torch.arange(recipe.batch_size) + k * recipe.batch_size)
        optimizer.zero_grad()
        defense.loss(network, batch, progress, Randomness(0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        defense.after_step(network)
        spent += time.process_time() - start if k else 0.0  # the first warms up
    return spent / SAMPLES * recipe.epochs * -(-len(data) // recipe.batch_size)


def main(root: Path) -> None:
    """Writes the cards again with the estimate, and prints it."""
    torch.set_num_threads(1)
    for place in sorted(SHIPPED.glob("*.json")):
        card = ModelCard.model_validate_json(place.read_bytes())
        if card.seconds is not None:
            continue
        architecture, defense = ModelName.parse(card.name).parts()
        network = architecture.build()
        network.load_state_dict(load_weights(card.name))
        data = training_data(FAMILIES[architecture.data], root)
        seconds = seconds_of_training(network, defense, Recipe(**card.recipe), data)
        words = f"{machine('cpu')}, from {SAMPLES} steps"
        known = card.model_copy(update={"seconds": round(seconds, -1) or round(seconds, 1), "machine": words})
        write_atomically(places(card.name)[1], (known.model_dump_json(indent=2) + "\n").encode())
        print(f"{card.name}: {known.seconds:.0f} s on {words}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
