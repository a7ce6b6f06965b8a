"""What a user may hand over as a model: what can be judged is, what cannot is one line with the remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.errors import UserError
from models.trial import tried

X = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A small honest network with something done to its input and its output."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], object] = lambda z: z,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> object:
        return self.after(self.head(torch.relu(self.conv(self.before(x))).flatten(1)))


def only_many(x: Tensor) -> Tensor:
    if len(x) < 2:
        raise ValueError("expected more than 1 value per channel\nwhen training")
    return x


class Stubborn(nn.Module):
    """Batch normalisation that no eval() reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(1), Net()

    def train(self, mode: bool = True) -> Stubborn:
        return self

    def forward(self, x: Tensor) -> object:
        return self.net(self.norm(x))


MISTAKES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dictionary": (
        lambda: Net(after=lambda z: {"logits": z, "loss": 0}),
        "returned dict with logits, loss for 12 images: wrap it",
    ),
    "tuple": (lambda: Net(after=lambda z: (z, z)), "returned tuple of 2 for 12 images: wrap it"),
    "one number": (lambda: Net(after=lambda z: z[:, 0]), "return (n, 2), for instance of -z and z"),
    "one column": (lambda: Net(after=lambda z: z[:, :1]), "return (n, 2), for instance of -z and z"),
    "squeezed": (lambda: Net(after=lambda z: z.squeeze()), "also for a batch of one"),
    "no batch of one": (lambda: Net(before=only_many), "fails on 1 images of shape (1, 6, 6): expected more"),
    "fixed batch": (lambda: Net(before=lambda x: x.reshape(4, 1, 6, 6)), "fails on 12 images"),
    "half": (lambda: Net().half(), "its weights are torch.float16, the images torch.float32: hand over"),
    "double": (lambda: Net().double(), "hand over network.float()"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "run it on one batch first"),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(72, 3)),
        "embeds whole numbers",
    ),
    "truths": (lambda: Net(after=lambda z: z > 0), "returned torch.bool in layout torch.strided"),
    "complex": (lambda: Net(after=lambda z: z + 0j), "returned torch.complex64"),
    "sparse": (lambda: Net(after=lambda z: z.to_sparse()), "in layout torch.sparse_coo: return real logits"),
    "channels": (lambda: nn.Conv2d(3, 4, 3), "needs 3 channels, the images have 1"),
    "no forward": (nn.Module, 'missing the required "forward" function'),
    "train mode": (Stubborn, "batch normalisation must use its running statistics"),
    "mixed samples": (lambda: Net(before=lambda x: x - x.mean(0)), "samples must not mix"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_judged_is_one_line(case: str) -> None:
    make, message = MISTAKES[case]
    with pytest.raises(UserError) as mistake:
        tried(make(), X, "net")
    assert message in str(mistake.value)
    assert str(mistake.value).startswith("'net'")
    assert "\n" not in str(mistake.value)


def test_channels_that_come_last_are_seen() -> None:
    with pytest.raises(UserError, match=r"permute\(0, 3, 1, 2\)"):
        tried(nn.Conv2d(3, 4, 3), torch.rand(5, 8, 8, 3), "net")
    with pytest.raises(UserError, match=r"images must be \(n, channels, height, width\)"):
        tried(nn.Conv2d(1, 4, 3), torch.rand(5, 36), "net")


def behind_the_counter(x: Tensor) -> Tensor:
    """Writes where no version is counted."""
    x.data.sub_(0.5)
    return x


@pytest.mark.parametrize(
    ("writing", "same"),
    [
        (behind_the_counter, lambda x: x - 0.5),
        (lambda x: x.sub_(0.5).mul_(2), lambda x: (x - 0.5) * 2),
        (nn.ReLU(inplace=True), nn.ReLU()),
    ],
)
def test_a_network_that_writes_into_its_input_is_judged_on_copies(
    writing: Callable[[Tensor], Tensor], same: Callable[[Tensor], Tensor]
) -> None:
    x, honest = X.clone(), Net(before=same)
    trial = tried(Net(before=writing), x, "net")
    assert torch.equal(x, X)
    assert "judged on copies" in trial.notes[0]
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(trial.network(x).sum(), x)
    (wanted,) = torch.autograd.grad(honest(x).sum(), x)  # type: ignore[attr-defined]
    assert torch.allclose(gradient, wanted)
    assert torch.equal(x, X)


def test_an_honest_network_is_left_as_it_is() -> None:
    network = Net().train()
    network.head.requires_grad_(False)
    trial = tried(network, X, "net")
    assert (trial.network, trial.classes, trial.stochastic, trial.notes) == (network, 3, False, ())
    assert network.training
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, False, False]


@pytest.mark.parametrize(
    "wrapped",
    [lambda network: torch.compile(network, backend="eager"), nn.DataParallel],
    ids=["compiled", "parallel"],
)
def test_what_stands_around_a_network_is_taken_off(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    network = Net()
    assert tried(wrapped(network), X, "net").network is network


def test_noise_is_seen_and_declared() -> None:
    trial = tried(Net(before=lambda x: x + 0.1 * torch.rand_like(x)), X, "net")
    assert trial.stochastic
    assert "judged as stochastic" in trial.notes[0]
