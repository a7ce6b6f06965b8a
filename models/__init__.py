"""Ground floor: what is judged (classifiers, data, weights) and the space an adversary may move in."""
