"""A user's own model from one line: built as written, prepared as declared, mistakes named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

import models.data
from bench import evaluate
from certify.graph import trace
from models.base import Batch
from models.discover import import_modules
from models.errors import UserError
from models.sources.base import SOURCES, ModelLine
from models.sources.opening import open_model
from tests.models.onnx_files import File

import_modules("models.sources")

CODE = """
import torch
from torch import nn

def make(width=4, channels=1, seed=0):
    return Net(width, channels, seed)

class Net(nn.Module):
    def __init__(self, width, channels, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(channels, width, 3)
        self.head = nn.Linear(width * 16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))

def probabilities():
    return nn.Sequential(Net(4, 1, 0), nn.Softmax(1))

def noisy():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x + 0.1 * torch.rand_like(x))
    return Noisy(4, 1, 0)

def mixing():
    class Mixing(Net):
        def forward(self, x):
            return super().forward(x - x.mean(0))
    return Mixing(4, 1, 0)

def dropped():
    return nn.Sequential(Net(4, 1, 0), nn.Dropout(0.9))

def not_a_network():
    return 3

def failing():
    raise KeyError("weights.pt")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    return tmp_path


def images(n: int = 20, channels: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, channels, 6, 6, generator=generator)
    return Batch.of(x, torch.randint(0, 3, (n,), generator=generator))


def test_a_file_is_called_with_the_arguments_of_the_line(folder: Path) -> None:
    line = ModelLine.parse(f"file:{folder}/net.py:make,width=7,seed=3")
    network = line.build()
    assert network.conv.weight.shape == (7, 1, 3, 3)
    assert not network.training
    torch.manual_seed(3)
    assert torch.equal(network.conv.weight, nn.Conv2d(1, 7, 3).weight)
    texts = ModelLine.parse("file:net.py:make,sizes=(3, 4),name=wide,deep=True").place
    assert texts.arguments == {"sizes": (3, 4), "name": "wide", "deep": True}


def test_images_of_another_size_are_resized_inside_the_model(folder: Path) -> None:
    plain = f"file:{folder}/net.py:make"
    small, large = images().x, torch.rand(5, 1, 12, 9, generator=torch.Generator().manual_seed(2))
    network = ModelLine.parse(plain).build()
    wanted = torch.nn.functional.interpolate(large, (6, 6), mode="bilinear")
    opened = open_model(f"{plain}@size=6", Batch.of(large, torch.zeros(5, dtype=torch.int64)), 3)
    assert torch.allclose(opened.classifier(large), network(wanted), atol=1e-5)
    assert "resizes 12 x 9 images to 6 x 6" in opened.notes[0]
    same = open_model(f"{plain}@size=6,6", images(), 3)
    assert torch.equal(same.classifier(small), network(small))
    assert same.notes == ()
    normalised = open_model(f"{plain}@size=6@mean=0.5", Batch.of(large, torch.zeros(5, dtype=torch.int64)), 3)
    assert torch.allclose(normalised.classifier(large), network(wanted - 0.5), atol=1e-5)


def test_what_is_declared_stands_in_front_of_the_network(folder: Path) -> None:
    plain = f"file:{folder}/net.py:make,channels=3"
    x = images(channels=3).x
    network = ModelLine.parse(plain).build()
    ready = ModelLine.parse(f"{plain}@box=0,255@mean=10,20,30@std=2,4,8").build()
    mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in ((10.0, 20.0, 30.0), (2.0, 4.0, 8.0)))
    assert torch.allclose(ready(x), network((255 * x - mean) / std), atol=1e-3)
    (folder / "net.toml").write_text(
        "box = [0, 255]\nmean = [10, 20, 30]\nstd = [2, 4, 8]\n", encoding="utf-8"
    )
    assert torch.allclose(ModelLine.parse(plain).build()(x), ready(x), atol=1e-4)
    one = ModelLine.parse(f"{plain}@box=0,1@mean=0.5@std=1").build()
    assert torch.allclose(one(x), network(x - 0.5), atol=1e-5)
    code = "from torch import nn\n\ndef make():\n    return nn.Linear(4, 2)\n"
    (folder / "flat.py").write_text(code, encoding="utf-8")
    flat = ModelLine.parse(f"file:{folder}/flat.py:make@mean=0.5@std=0.1").build()
    assert flat(torch.rand(3, 4)).shape == (3, 2)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_loaded_from_their_file(suffix: str, folder: Path) -> None:
    wanted = ModelLine.parse(f"file:{folder}/net.py:make,seed=9").build().state_dict()
    path = folder / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{name}": value for name, value in wanted.items()}}, path)
    else:
        save_file(wanted, path)
    found = ModelLine.parse(f"file:{folder}/net.py:make@weights={path}").build().state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    with pytest.raises(UserError, match="do not fit") as mistake:
        ModelLine.parse(f"file:{folder}/net.py:make,width=5@weights={path}").build()
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "net", "anything"])
def test_weights_are_found_in_a_checkpoint(key: str, folder: Path) -> None:
    wanted = ModelLine.parse(f"file:{folder}/net.py:make,seed=9").build().state_dict()
    path = folder / "checkpoint.pth"
    torch.save(
        {"epoch": 3, "optimizer": {}, key: {f"model.{name}": one for name, one in wanted.items()}}, path
    )
    found = ModelLine.parse(f"file:{folder}/net.py:make@weights={path}").build().state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_pickled_network_is_not_loaded_as_weights(folder: Path) -> None:
    torch.save(nn.Linear(2, 2), folder / "whole.pt")
    torch.save([1, 2], folder / "list.pt")
    for name, said in (
        ("whole.pt", r"hold more than tensors: save the network's state_dict\(\)"),
        ("list.pt", "a list"),
    ):
        with pytest.raises(UserError, match=said) as mistake:
            ModelLine.parse(f"file:{folder}/net.py:make@weights={folder}/{name}").build()
        assert "\n" not in str(mistake.value)


def test_a_package_of_the_users_own_called_models_is_found_and_ours_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = folder / "models"
    package.mkdir()
    (package / "__init__.py").write_text("MINE = True\n", encoding="utf-8")
    (package / "data.py").write_text((folder / "net.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "main.py").write_text("from models.data import make\n", encoding="utf-8")
    ours, path = models.data, list(sys.path)
    monkeypatch.chdir(folder)
    for line in (f"file:{folder}/main.py:make", "python:models.data:make", "python:main:make"):
        assert ModelLine.parse(line).build()(images().x).shape == (20, 3)
    assert sys.modules["models.data"] is ours
    assert sys.path == path
    assert not hasattr(sys.modules["models"], "MINE")


def test_a_file_inside_a_package_called_models_finds_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "own" / "models"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "layers.py").write_text(CODE, encoding="utf-8")
    code = "from models.layers import make as one\nfrom .layers import make as two\n"
    (package / "net.py").write_text(f"{code}def both():\n    assert one is two\n    return one()\n")
    ours = sys.modules["models"]
    for place in (tmp_path, tmp_path / "own"):
        monkeypatch.chdir(place)
        line = f"file:{package.relative_to(place)}/net.py:both"
        assert ModelLine.parse(line).build()(images().x).shape == (20, 3)
    assert sys.modules["models"] is ours
    assert not hasattr(ours, "layers")


def test_two_folders_may_hold_files_of_one_name(tmp_path: Path) -> None:
    for folder, width in (("one", 4), ("two", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "width.py").write_text(f"WIDTH = {width}\n", encoding="utf-8")
        code = "from torch import nn\nfrom width import WIDTH\ndef make():\n    return nn.Linear(WIDTH, 2)\n"
        (tmp_path / folder / "net.py").write_text(code, encoding="utf-8")
    for folder, width in (("one", 4), ("two", 5), ("one", 4)):
        assert ModelLine.parse(f"file:{tmp_path}/{folder}/net.py:make").build().in_features == width


def test_files_that_hold_a_whole_network(folder: Path) -> None:
    network = ModelLine.parse(f"file:{folder}/net.py:make").build()
    x = images().x
    torch.jit.save(torch.jit.trace(network, x), str(folder / "net.pt"))
    exported = torch.export.export(network, (x[:1],))
    torch.export.save(exported, str(folder / "one.pt2"))
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(
        torch.export.export(network, (x,), dynamic_shapes=({0: batch},)), str(folder / "many.pt2")
    )
    for line in ("torchscript:net.pt", "exported:one.pt2", "exported:many.pt2"):
        source, _, name = line.partition(":")
        found = open_model(f"{source}:{folder}/{name}", images(), 3).classifier
        assert torch.allclose(found.logits(x), network(x), atol=1e-5)
        found.eval()
        judged = evaluate(found, x, network(x).argmax(1), eps=0.1, attacks=["fgsm"], certificates=["ibp"])
        honest = evaluate(network, x, network(x).argmax(1), eps=0.1, attacks=["fgsm"], certificates=[])
        assert judged.attacked == honest.attacked < 1
    torch.export.save(torch.export.export(network, (x[:3],)), str(folder / "three.pt2"))
    with pytest.raises(UserError, match="exported for batches of 3 alone: export it with one image"):
        open_model(f"exported:{folder}/three.pt2", images(), 3)
    with pytest.raises(UserError, match="holds its own weights: leave out weights"):
        open_model(f"torchscript:{folder}/net.pt@weights={folder}/net.pt", images(), 3)


TIMM = """
from torch import nn

def list_models():
    return ["tiny", "small"]

def create_model(name, pretrained, classes=3):
    assert not pretrained
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
    network.pretrained_cfg = {"hf_hub_id": "timm/tiny.a1", "url": "https://example.org/tiny-1.pth"}
    return network
"""


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small package called timm, and empty caches."""
    (tmp_path / "timm.py").write_text(TIMM, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield tmp_path
    sys.modules.pop("timm", None)


def test_timm_takes_weights_from_a_file_or_a_cache_and_downloads_nothing(timm: Path) -> None:
    with pytest.raises(UserError, match="nothing is downloaded: add @weights=FILE"):
        open_model("timm:tiny", images(), 3)
    with pytest.raises(UserError, match="unknown timm model 'tinny': did you mean tiny"):
        open_model("timm:tinny", images(), 3)
    wanted = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    cache = timm / "hub" / "hub" / "models--timm--tiny.a1" / "snapshots" / "0123"
    checkpoints = timm / "torch" / "hub" / "checkpoints"
    for place, name in ((checkpoints, "tiny-1.pth"), (cache, "pytorch_model.bin"), (timm, "mine.pth")):
        place.mkdir(parents=True, exist_ok=True)
        wanted[1].bias.data += 1
        torch.save(wanted.state_dict(), place / name)
        line = "timm:tiny@weights=" + str(place / name) if name == "mine.pth" else "timm:tiny"
        assert torch.allclose(open_model(line, images(), 3).classifier(images().x), wanted(images().x))


def test_an_onnx_file_is_a_model_too(tmp_path: Path) -> None:
    file = File(1, 1, 6, 6)
    file.add("Flatten")
    file.add("MatMul", file.last, file.weights(36, 3))
    path = file.write(tmp_path / "net.onnx")
    opened = open_model(f"onnx:{path}@classes=3", images(), 3)
    assert opened.classifier.num_classes == 3
    assert opened.notes == ()


@pytest.mark.parametrize(("last", "axis"), [("ArgMax", -1), ("ArgMax", 1), ("Hardmax", 1)])
def test_an_onnx_file_that_returns_labels_is_judged_by_the_scores_behind_them(
    last: str, axis: int, tmp_path: Path
) -> None:
    file = File(1, 1, 6, 6)
    file.add("Flatten")
    scores = file.add("MatMul", file.last, file.weights(36, 3))
    file.add("Squeeze", file.add(last, scores, axis=axis))
    labels = file.model()
    labels.graph.output[0].type.tensor_type.elem_type = 7 if last == "ArgMax" else 1
    path, plain = tmp_path / "labels.onnx", tmp_path / "scores.onnx"
    path.write_bytes(labels.SerializeToString())
    del file.nodes[2:]
    file.last = scores
    found, expected = (open_model(f"onnx:{p}", images(), 3).classifier for p in (path, file.write(plain)))
    assert torch.equal(found.logits(images().x), expected.logits(images().x))


@pytest.mark.parametrize(
    ("nodes", "opset"),
    [
        ([("Softmax", {})], 13),
        ([("Softmax", {"axis": 1})], 12),
        ([("Softmax", {}), ("Reshape", [3, 1])], 12),
        ([("Reshape", [1, 1, 3]), ("LogSoftmax", {"axis": 2}), ("Squeeze", [1])], 13),
        ([("Softmax", {"axis": -1}), ("Identity", {}), ("ArgMax", {"axis": 1})], 13),
    ],
)
def test_an_onnx_file_that_ends_in_a_softmax_is_judged_by_the_logits_before_it(
    nodes: list[tuple[str, Any]], opset: int, tmp_path: Path
) -> None:
    file = File(1, 1, 6, 6)
    file.add("Flatten")
    scores = file.add("MatMul", file.last, file.weights(36, 3))
    for name, settings in nodes:
        if isinstance(settings, list):
            file.add(name, file.last, file.constant(settings))
        else:
            file.add(name, **settings)
    whole = file.model(opset)
    whole.graph.output[0].type.tensor_type.elem_type = 7 if nodes[-1][0] == "ArgMax" else 1
    path, plain = tmp_path / "net.onnx", tmp_path / "logits.onnx"
    path.write_bytes(whole.SerializeToString())
    del file.nodes[2:]
    file.last = scores
    found, expected = (
        open_model(f"onnx:{p}", images(), 3).classifier for p in (path, file.write(plain, opset))
    )
    assert torch.equal(found.logits(images().x), expected.logits(images().x))


def test_one_of_several_outputs_of_an_onnx_file_is_named(tmp_path: Path) -> None:
    file = File("n", 1, "h", "w")
    file.add("Flatten")
    first = file.add("MatMul", file.last, file.weights(36, 3))
    second = file.add("Softmax", file.add("MatMul", "flatten_0_0", file.weights(36, 3)))
    model = file.model()
    model.graph.output.append(helper.make_tensor_value_info(first, TensorProto.FLOAT, None))
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=rf"has 2 outputs .*: name it, onnx:.*,output={second}$"):
        open_model(f"onnx:{path}", images(), 3)
    with pytest.raises(UserError, match=rf"has no output 'other': it has {second}, {first}"):
        open_model(f"onnx:{path},output=other", images(), 3)
    logits = [open_model(f"onnx:{path},output={name}", images(), 3).classifier for name in (first, second)]
    x = images().x
    for judged, place in zip(logits, (0, 1), strict=True):
        weights = torch.from_numpy(numpy_helper.to_array(model.graph.initializer[place]).copy())
        assert torch.allclose(judged.logits(x), x.flatten(1) @ weights, atol=1e-5)
    marks = [ModelLine.parse(f"onnx:{path},output={name}").fingerprint() for name in (first, second)]
    assert marks[0] != marks[1]
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((36, 3), np.float32), model.graph.initializer[0].name)
    )
    path.write_bytes(model.SerializeToString())
    assert ModelLine.parse(f"onnx:{path},output={first}").fingerprint() != marks[0]


def test_an_onnx_file_that_returns_a_label_for_each_place_is_no_classifier(tmp_path: Path) -> None:
    file = File(1, 1, 6, 6)
    file.add("ArgMax", file.add("Relu", "x"), axis=3)
    path = file.write(tmp_path / "net.onnx")
    with pytest.raises(UserError, match="a label for each of 6 places of 'relu_0_0'"):
        open_model(f"onnx:{path}", images(), 3)


@pytest.mark.parametrize(
    ("channels", "shape"),
    [
        (1, (1, 36)),
        (1, (36,)),
        (1, (36, 1)),
        (1, (1, 6, 6)),
        (1, (1, 6, 6, 1)),
        (3, (1, 108)),
        (3, (1, 6, 6, 3)),
        (3, ("n", 3, "h", "w")),
        (3, ("n", "h", "w", 3)),
        (1, ("n", "entries")),
    ],
)
def test_an_onnx_file_takes_images_as_it_arranges_them(
    channels: int, shape: tuple[int | str, ...], tmp_path: Path
) -> None:
    """Flat, as a column, without channels, channels last or of any size: a sum of entries by their place."""
    file = File(*shape)
    weights = np.arange(36.0 * channels * 2).reshape(channels, 6, 6, 2)
    last = weights.transpose(1, 2, 0, 3) if shape[-1] == 3 else weights
    file.add("Gemm", file.add("Reshape", "x", file.constant([1, -1])), file.constant(last.reshape(-1, 2)))
    path = file.write(tmp_path / "net.onnx")
    batch = images(channels=channels)
    batch = Batch.of(batch.x, batch.y % 2)
    opened = open_model(f"onnx:{path}", batch, 2)
    expected = torch.einsum("nchw,chwk->nk", batch.x, torch.from_numpy(weights).float())
    assert torch.allclose(opened.classifier.logits(batch.x), expected, rtol=1e-4)
    trace(opened.classifier)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 6, 6), r"inputs of shape \(3, 6, 6\), but the images are \(1, 6, 6\): give it images"),
        ((1, 1, 8, 8), "add @size=8"),
        ((1, 1, 8, 9), "add @size=8,9"),
        ((4, 1, 6, 6), "export it for a batch of one"),
    ],
)
def test_an_onnx_file_for_other_images_says_which(
    shape: tuple[int, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = File(*shape)
    file.add("Gemm", file.add("Reshape", "x", file.constant([1, -1])), file.weights(int(np.prod(shape)), 3))
    path = file.write(tmp_path / "net.onnx")
    with pytest.raises(UserError, match=message):
        open_model(f"onnx:{path}", images(), 3)
    if "size" in message:
        settings = message.removeprefix("add ")
        assert open_model(f"onnx:{path}{settings}", images(), 3).classifier.num_classes == 3
    assert capsys.readouterr().err == ""


def test_the_fingerprint_follows_weights_settings_and_code(folder: Path) -> None:
    lines = ["make", "make,seed=1", "make@mean=0.5", "make@std=0.5"]
    marks = [ModelLine.parse(f"file:{folder}/net.py:{line}").fingerprint() for line in lines]
    assert len(set(marks)) == 4
    assert all(len(mark) == 16 for mark in marks)
    assert ModelLine.parse(f"file:{folder}/net.py:make").fingerprint() == marks[0]
    path = folder / "net.py"
    path.write_text(path.read_text(encoding="utf-8").replace("torch.relu", "torch.tanh"), encoding="utf-8")
    assert ModelLine.parse(f"file:{folder}/net.py:make").fingerprint() != marks[0]


MISTAKES = {
    "another source": ("fil:net.py:make", "unknown model source 'fil': did you mean file"),
    "no function": ("file:{}/net.py", "write file:PATH.py:FUNCTION"),
    "unknown function": ("file:{}/net.py:mak", "has no function 'mak'"),
    "no file": ("file:{}/absent.py:make", "no file"),
    "no argument": ("file:{}/net.py:make,width", "'width' in"),
    "wrong argument": ("file:{}/net.py:make,depth=3", "TypeError"),
    "no network": ("file:{}/net.py:not_a_network", "returned int: return the torch.nn.Module"),
    "failing": ("file:{}/net.py:failing", "KeyError: 'weights.pt'"),
    "probabilities": ("file:{}/net.py:probabilities", "returned probabilities"),
    "size": ("file:{}/net.py:make@size=big", "size needs one whole number or height,width, not 'big'"),
    "sizes": ("file:{}/net.py:make@size=3,4,5", "size needs one whole number or height,width"),
    "mixed samples": ("file:{}/net.py:mixing", "other logits alone than in a batch"),
    "channels": ("file:{}/net.py:make,channels=3", "needs 3 channels, the images have 1"),
    "declared classes": ("file:{}/net.py:make@classes=7", "returns 3 logits, not the 7 declared"),
    "std": ("file:{}/net.py:make@std=0", "std must be above 0"),
    "box": ("file:{}/net.py:make@box=1,0", "box needs a lower and a higher end"),
    "box of one": ("file:{}/net.py:make@box=255", "box needs 2 numbers"),
    "mean": ("file:{}/net.py:make@mean=grey", "mean needs numbers, not 'grey'"),
    "weights": ("file:{}/net.py:make@weights=absent.pth", "no weights file absent.pth"),
    "module": ("python:absent_package.net:make", "ModuleNotFoundError"),
    "torchscript": ("torchscript:{}/net.py", "cannot be read as TorchScript"),
    "exported": ("exported:{}/net.py", "cannot be read as an exported program"),
    "hub": ("torchvision:resnet51", "unknown torchvision model 'resnet51': did you mean"),
    "download": ("torchvision:alexnet", "nothing is downloaded: add @weights=FILE"),
    "timm": ("timm:resnet18", "needs the package timm: pip install 'rhobust[timm]'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(folder))
    text, message = MISTAKES[case]
    with pytest.raises(UserError) as mistake:
        open_model(text.format(folder), images(), 3)
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("case", ["probabilities", "mixed samples"])
def test_an_audit_may_see_what_else_is_refused(case: str, folder: Path) -> None:
    text = MISTAKES[case][0].format(folder)
    assert open_model(text, images(), 3, lenient=True).classifier.num_classes == 3


def test_weights_that_were_never_trained_are_noted(folder: Path) -> None:
    """A forgotten --weights is a network at random, and a number that means nothing."""
    code = CODE + "\ndef raw():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))\n"
    (folder / "net.py").write_text(code, encoding="utf-8")
    batch = images(60)
    line = f"file:{folder}/net.py:raw"
    (note,) = open_model(line, batch, 3).notes
    assert note.endswith("has new random weights whenever it is built: name trained ones, --weights FILE")
    torch.save(ModelLine.parse(line).build().state_dict(), folder / "net.pth")
    assert open_model(f"{line}@weights={folder}/net.pth", batch, 3).notes == ()
    # The same weights every time are nobody's accident.
    assert open_model(f"file:{folder}/net.py:make", batch, 3).notes == ()


def test_a_wrong_class_count_is_told_from_both_sides(folder: Path) -> None:
    line = f"file:{folder}/net.py:make"
    with pytest.raises(UserError, match="returns 3 logits, but the labels have 5 classes"):
        open_model(line, images(), 5)
    with pytest.raises(UserError, match="add @classes=3"):
        open_model(line, images(), 2)
    assert open_model(f"{line}@classes=3", images(), 2).classifier.num_classes == 3


def test_dropout_is_switched_off_and_noise_is_noted(folder: Path) -> None:
    assert open_model(f"file:{folder}/net.py:dropped", images(), 3).notes == ()
    noisy = open_model(f"file:{folder}/net.py:noisy", images(), 3)
    assert noisy.classifier.stochastic
    assert "answers differently" in noisy.notes[0]


def test_users_code_may_import_torchvision_beside_any_torch(folder: Path) -> None:
    (folder / "vision.py").write_text(
        """
import sys
from pathlib import Path
import torch

def failing(what):
    tried = Path(__file__).with_suffix(".tried")
    tried.write_text(tried.read_text() + "." if tried.exists() else ".")
    if len(tried.read_text()) < 2:
        raise RuntimeError(f"operator {what} does not exist")
    assert hasattr(torch.ops.torchvision, "nms")
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))

def other():
    raise RuntimeError("operator mine::nms does not exist")
""",
        encoding="utf-8",
    )
    assert open_model(f"file:{folder}/vision.py:failing,what=torchvision::nms", images(), 3).classifier
    # Failed, built, and built again to see whether its weights are random.
    assert (folder / "vision.tried").read_text() == "..."
    with pytest.raises(UserError, match="mine::nms does not exist"):
        open_model(f"file:{folder}/vision.py:other", images(), 3)


def test_every_source_says_what_it_reads() -> None:
    assert set(SOURCES) == {
        "python", "file", "onnx", "torchscript", "exported", "torchvision", "timm", "robustbench"
    }  # fmt: skip
    assert all((SOURCES[name].__doc__ or "").strip() for name in SOURCES)
