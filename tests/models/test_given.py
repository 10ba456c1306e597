"""A model in memory: measured as it is, left as it was, refused in one sentence."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradscope.data.given import as_image_set
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models.given import given_model
from gradscope.models.inspection import LogitsOnly

X = torch.from_numpy(load_digits().images[:40, :, :6] / 16).float()[:, None].expand(-1, 3, -1, -1).contiguous()
Y = torch.from_numpy(load_digits().target[:40])


@pytest.fixture
def images() -> ImageSet:
    return as_image_set(X, Y)


def network(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 48, classes)
    ).eval()


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Returning(nn.Module):
    """A network whose output is put into something."""

    def __init__(self, put: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.put = network(), put
        self.eval()

    def forward(self, images: Tensor) -> Any:
        return self.put(self.network(images))


def test_a_plain_model_is_itself(images: ImageSet) -> None:
    model = network()
    subject, same = given_model(model, images, label="mine")
    assert subject.model is model
    assert (subject.label, subject.mode, subject.architecture, subject.seed) == ("mine", "foreign", "Sequential", None)
    assert same is images


@pytest.mark.parametrize(
    ("mean", "std"), [(0.4, 0.2), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.5)), ([0.5, 0.4, 0.3], 0.5), (0, 1)]
)
def test_normalisation_is_put_in_front(images: ImageSet, mean: Any, std: Any) -> None:
    model = network()
    subject, _ = given_model(model, images, mean=mean, std=std)
    shift, scale = (torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
    with torch.no_grad():
        torch.testing.assert_close(subject.model(X), model((X - shift) / scale))
    assert not any(module.training for module in subject.model.modules())
    assert any(part is model for part in subject.model.modules())


@pytest.mark.parametrize("put", [lambda logits: SimpleNamespace(logits=logits), lambda logits: Pair(logits, logits)])
@pytest.mark.parametrize("std", [None, 0.5])
def test_outputs_with_logits(images: ImageSet, put: Callable[[Tensor], Any], std: float | None) -> None:
    model = Returning(put)
    subject, _ = given_model(model, images, mean=None if std is None else 0.1, std=std)
    assert isinstance(subject.model, LogitsOnly)
    with torch.no_grad():
        torch.testing.assert_close(subject.model(X), model.network(X if std is None else (X - 0.1) / std))


def test_the_model_is_left_as_it_was(images: ImageSet, digest: Callable[[nn.Module], str]) -> None:
    class Restless(nn.Module):
        """Counts its calls, draws noise."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(images + torch.rand_like(images))

    model = Restless().eval()
    first = next(model.parameters())
    first.requires_grad_(False)
    model.inner[4].bias.grad = torch.ones(10)
    before = digest(model)
    given_model(model, images, mean=0.5, std=0.5)
    assert digest(model) == before


def test_classes_are_the_models(images: ImageSet) -> None:
    _, grown = given_model(network(12), images)
    assert len(grown.classes) == 12
    with pytest.raises(GradscopeError, match=r"y must be labels from 0 to 4 \(5 classes of the model\), got 9"):
        given_model(network(5), images)


def test_a_cut_gradient_is_a_finding_not_a_mistake(images: ImageSet) -> None:
    given_model(Returning(lambda logits: logits.detach()), images)


def test_bytes_and_a_single_image_serve() -> None:
    given_model(network(), as_image_set((X * 255).byte(), Y))
    given_model(network(), as_image_set(X[:1], Y[:1]))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network().train(), {}, "model must be in evaluation mode, got training mode; call model.eval()"),
        (nn.Sequential(network()), {}, "got training mode; call model.eval()"),
        (lambda images: images, {}, "got function; make it a module's forward: class Net(torch.nn.Module): forward ="),
        (network, {}, "got function; make it a module's forward"),
        (nn.Flatten, {}, "got the class Flatten; call it: Flatten()"),
        (network().state_dict(), {}, "got a state dict; build the model and call its load_state_dict"),
        ([network()], {}, "got list; pass several models as a dictionary by name"),
        (None, {}, "model must be a torch.nn.Module, a path, or several of these by name, got NoneType"),
        (network().double(), {}, "model must take float32 images, got float64 parameters; call model.float()"),
        (nn.Conv2d(1, 3, 3).eval(), {}, "model must take the data's 3 x 8 x 6 images: RuntimeError: Given groups"),
        (
            nn.Conv2d(3, 4, 3).eval(),
            {},
            "model must return logits (N, classes), got a tensor (2, 4, 6, 4) for 2 images",
        ),
        (Returning(lambda logits: (logits,)), {}, "got a tuple for 2 images; wrap it in a module whose"),
        (Returning(lambda logits: SimpleNamespace(logits=None)), {}, "got a SimpleNamespace for 2 images"),
        (Returning(lambda logits: logits[:, :1]), {}, "model must return logits of at least 2 classes, got 1"),
        (Returning(lambda logits: logits / 0), {}, "model must return finite logits, got NaN or infinity"),
        (Returning(lambda logits: logits.argmax(1)), {}, "got a tensor (2,) for 2 images"),
        (Returning(lambda logits: logits.long()), {}, "model must return floating-point logits, got torch.int64"),
        (network(), {"mean": 0.5}, "std must be given with `mean`, or both be left out"),
        (
            network(),
            {"mean": (0.5, 0.5), "std": 1.0},
            "mean must be one number, or one for each of 3 channels, got 2 numbers",
        ),
        (
            network(),
            {"mean": "imagenet", "std": 1.0},
            "mean must be one number, or one for each channel, got 'imagenet'",
        ),
        (network(), {"mean": 0.5, "std": 0.0}, "std must be above 0, got [0.0]"),
    ],
)
def test_a_misfit_gets_one_sentence(images: ImageSet, model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GradscopeError) as raised:
        given_model(model, images, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_part_in_training_mode_is_named(images: ImageSet) -> None:
    model = network()
    model[1].train()
    with pytest.raises(GradscopeError, match=r"got training mode in its part 1; call model\.eval\(\)"):
        given_model(model, images)
    assert model[1].training
