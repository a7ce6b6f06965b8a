"""The commands on one model of the user's choice: evaluate, audit, certify, smallest, detect; its proofs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.options import (
    DataRoot,
    Device,
    Download,
    Norm,
    Proof,
    Seconds,
    Strict,
    Weights,
    finish,
    with_weights,
)


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A zoo name, or your own: file:net.py:make, onnx:net.onnx, ...")
    ],
    data: Annotated[
        str, typer.Option(help="mnist5k, mnist, ..., npz:FILE, pt:FILE, folder:DIR or parquet:PLACE.")
    ] = "mnist5k",
    norm: Norm = "linf",
    eps: Annotated[
        str, typer.Option(help="Radius, in units of [0, 1]: 0.1 or 8/255; else the threat's size.")
    ] = "8/255",
    limit: Annotated[int, typer.Option(help="How many images, balanced over the classes.")] = 100,
    attack: Annotated[list[str] | None, typer.Option(help="Only this attack.")] = None,
    certify: Annotated[list[str] | None, typer.Option(help="Only this certificate.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    strict: Strict = False,
    proof: Proof = None,
    weights: Weights = None,
    seconds: Seconds = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Bracket the robust accuracy of one model, the zoo's or your own, and print it.

    MODEL is SOURCE:PLACE with SOURCE one of file, python, onnx, torchscript, exported, torchvision,
    timm, robustbench: file:net.py:make,width=32@mean=0.13@std=0.31 calls make(width=32) and
    normalises the inputs. @mean, @std, @size, @box, @classes and @weights may stand in net.toml as well.
    """
    finish(
        "evaluate",
        with_weights(model, weights),
        data,
        norm,
        eps,
        limit,
        tuple(attack or ()),
        tuple(certify or ()),
        data_root,
        download,
        strict,
        device.value,
        seed,
        proof,
        seconds,
    )


def certify(
    onnx: Annotated[Path | None, typer.Option(help="Network: FILE.onnx or .onnx.gz.")] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE for each network of a VNN-LIB 2.0 property with several."),
    ] = None,
    vnnlib: Annotated[Path | None, typer.Option(help="Property: FILE.vnnlib or .vnnlib.gz.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds (default 300; in a batch, the file's own).")
    ] = None,
    witness: Annotated[
        Path | None, typer.Option(help="Write the counterexample here (in a batch: a folder).")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(help="Run every onnx,vnnlib,timeout line of this file.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="The batch's answers (default results.csv): a line with a row there is not run."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the searches.")] = 0,
    model: Annotated[str | None, typer.Argument(hidden=True)] = None,
    eps: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Prove or break a VNN-LIB property of an ONNX network, as in VNN-COMP.

    The first line on stdout is unsat (proved), sat (broken: the counterexample follows), unknown or
    timeout. A stopped batch keeps its finished rows; the same command continues, and asks again where
    a file has changed since (hashes stand in RESULTS.sha256). Exit code: 0 answered, 1 some instance of
    a batch failed, 2 the request could not be carried out. Images around which a model is to be certified
    are for evaluate MODEL --eps EPS --certify exact.
    """
    finish("certify", onnx, network or [], vnnlib, timeout, witness, batch, results, seed, model or eps)


def audit(
    model: Annotated[
        str, typer.Argument(help="A zoo name, or your own: file:net.py:make, onnx:net.onnx, ...")
    ],
    data: Annotated[
        str, typer.Option(help="mnist5k, mnist, ..., npz:FILE, pt:FILE, folder:DIR or parquet:PLACE.")
    ] = "mnist5k",
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    eps: Annotated[str, typer.Option(help="Radius, in units of [0, 1]: 0.1 or 8/255.")] = "8/255",
    limit: Annotated[int, typer.Option(help="How many images, balanced over the classes.")] = 50,
    data_root: DataRoot = None,
    download: Download = False,
    weights: Weights = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Also keep it under OUT/analyses, for the model's page of a report.")
    ] = None,
) -> None:
    """Ask whether a model's robust accuracy can be believed, and print every rung's answer.

    MODEL as in evaluate. Exit code: 0 every rung passed, 1 some failed, 2 the audit could not be run.
    """
    finish(
        "audit",
        with_weights(model, weights),
        data,
        norm,
        eps,
        limit,
        data_root,
        download,
        device.value,
        seed,
        out,
    )


def smallest(
    model: Annotated[
        str, typer.Argument(help="A zoo name, or your own: file:net.py:make, onnx:net.onnx, ...")
    ],
    data: Annotated[
        str, typer.Option(help="mnist5k, mnist, ..., npz:FILE, pt:FILE, folder:DIR or parquet:PLACE.")
    ] = "mnist5k",
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    limit: Annotated[int, typer.Option(help="How many images, balanced over the classes.")] = 10,
    attack: Annotated[list[str] | None, typer.Option(help="Only this minimal-norm attack.")] = None,
    seconds: Annotated[float, typer.Option(help="Time limit of one image's proof.")] = 60.0,
    tolerance: Annotated[float, typer.Option(help="How narrow an interval, as a share of it.")] = 1e-3,
    out: Annotated[Path | None, typer.Option(help="Write one row per image here, as CSV.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    weights: Weights = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Prove each image's smallest perturbation, and measure minimal-norm attacks against it.

    MODEL as in evaluate. Images are bracketed by proofs and counterexamples until both ends meet.
    """
    finish(
        "smallest",
        with_weights(model, weights),
        data,
        norm,
        limit,
        tuple(attack or ()),
        seconds,
        tolerance,
        out,
        data_root,
        download,
        device.value,
        seed,
    )


def detect(
    model: Annotated[
        str, typer.Argument(help="A zoo name, or your own: file:net.py:make, onnx:net.onnx, ...")
    ],
    detector: Annotated[str, typer.Option(help="pca-tail, feature-squeezing, ..., with (KEY=VALUE).")],
    data: Annotated[
        str, typer.Option(help="mnist5k, mnist, ..., npz:FILE, pt:FILE, folder:DIR or parquet:PLACE.")
    ] = "mnist5k",
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    eps: Annotated[str, typer.Option(help="Radius, in units of [0, 1]: 0.1 or 8/255.")] = "8/255",
    limit: Annotated[int, typer.Option(help="How many images are scored, clean and attacked.")] = 100,
    rate: Annotated[float, typer.Option(help="Share of clean images that may be flagged.")] = 0.05,
    roc: Annotated[Path | None, typer.Option(help="Write the ROC curves here, as CSV.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    weights: Weights = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Score a detector against an adversary that does not know it and one that does.

    MODEL as in evaluate. Fitted, and its threshold set, on clean images that are not scored. Exit code: 1
    where clean images are flagged more often than asked for, 2 the request could not be carried out.
    """
    finish(
        "detect",
        with_weights(model, weights),
        detector,
        data,
        norm,
        eps,
        limit,
        rate,
        roc,
        data_root,
        download,
        device.value,
        seed,
    )


def verify_proof(
    file: Annotated[Path, typer.Argument(help="A file that evaluate or run --proof wrote.")],
    weights: Annotated[
        Path | None, typer.Option(help="The weights (.safetensors) that the proof must speak of.")
    ] = None,
) -> None:
    """Check a proof or witness file in outward rounded arithmetic, without the code that found it.

    Prints `proved` and every class' margin, `broken` and the class that wins, or `REFUTED: why`. Exit code:
    0 proved or broken, as the file claims, 1 refuted, 2 no such file.
    """
    finish("verify_proof", file, weights)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for command in (evaluate, audit, certify, smallest, verify_proof, detect):
        app.command()(command)
