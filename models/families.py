"""Families of data sets that the same networks judge: what they are trained and what they are tested on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names of data sets: to train on, less the images of `excluded` that others judge by, and to test on.

    judged: all registered data sets whose images and labels fit a network of this family.
    """

    training: str
    test: str
    judged: tuple[str, ...]
    excluded: str = ""


CIFAR10 = ("cifar10", "cifar10-train", "cifar10-jpeg", "cifar10-jpeg-train")

FAMILIES = {
    "mnist": Family("mnist-train", "mnist", ("mnist", "mnist5k", "mnist-train", "fashion-mnist"), "mnist5k"),
    "mnist-3-7": Family("mnist-3-7-train", "mnist-3-7", ("mnist-3-7", "mnist5k-3-7"), "mnist5k-3-7"),
    "cifar10": Family("cifar10-train", "cifar10", CIFAR10),
    "cifar10-jpeg": Family("cifar10-jpeg-train", "cifar10-jpeg", CIFAR10),
    "gtsrb": Family("gtsrb-train", "gtsrb", ("gtsrb", "gtsrb-train")),
}


def unfit(family: str, data: str) -> str | None:
    """Why a network of `family` cannot judge the data set `data`, or None; a user's own is let pass."""
    known = any(data in other.judged for other in FAMILIES.values())
    if ":" in data or not known or data in FAMILIES[family].judged:
        return None
    return f"is trained for {FAMILIES[family].test}, not for {data}"
