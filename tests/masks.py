"""Masks put on a trained classifier, each with the cause that the audit has to name."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.data.image_set import ImageSet
from gradscope.functional import margin


class Behind(nn.Module):
    """A classifier behind a mask: ``after(model(before(x)))``."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


class Votes(nn.Module):
    """The votes of the five nearest neighbours in the features of a network: flat wherever nobody changes his mind."""

    def __init__(self, model: nn.Sequential, images: ImageSet) -> None:
        super().__init__()
        self.features = model[:-1]
        pixels, self.labels = images.batch(torch.arange(len(images)), "cpu")
        with torch.no_grad():
            self.known = self.features(pixels)

    def forward(self, images: Tensor) -> Tensor:
        distances = torch.cdist(self.features(images), self.known)
        votes = F.one_hot(self.labels[distances.topk(5, largest=False).indices], 10).sum(dim=1)
        return votes + 0 * distances.sum(dim=1, keepdim=True)


class Severed(torch.autograd.Function):
    """The identity, whose backward pass is zero."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class _Noisy(torch.autograd.Function):
    """The identity, whose backward pass is noise."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn_like(gradient)


def quantised(images: Tensor) -> Tensor:
    """Five levels."""
    return (images * 4).round() / 4


def noisy(images: Tensor) -> Tensor:
    return images + 0.2 * torch.randn_like(images)


#: Each mask and the cause that the audit has to name.
MASKS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "logits x 100": (lambda model: Behind(model, after=lambda logits: 100 * logits), "saturation"),
    "logits x 1000": (lambda model: Behind(model, after=lambda logits: 1000 * logits), "saturation"),
    "input quantised": (lambda model: Behind(model, before=quantised), "shattering"),
    "noise layer": (lambda model: Behind(model, before=noisy), "randomness"),
    "backward zero": (lambda model: Behind(model, before=Severed.apply), "missing gradient"),
    "backward noise": (lambda model: Behind(model, before=_Noisy.apply), "false gradient"),
    "30 tanh": (lambda model: Behind(model, after=lambda logits: 30 * torch.tanh(2 * logits)), "bounded output"),
    "clipped log-probabilities": (
        lambda model: Behind(model, after=lambda logits: (10 * logits).softmax(dim=1).clamp(1e-7, 1 - 1e-7).log()),
        "clipped output",
    ),
    "probabilities": (lambda model: Behind(model, after=lambda logits: logits.softmax(dim=1)), "probabilities"),
    "sharp probabilities": (
        lambda model: Behind(model, after=lambda logits: (30 * logits).softmax(dim=1)),
        "probabilities",
    ),
}


def overtrain(model: nn.Sequential, images: ImageSet, median: float) -> nn.Sequential:
    """Go on with the last layer until the median margin is ``median`` nats.

    On what it gets right, which a last layer separates by any margin; in float64, whose gradient lives on, and with a
    short memory: else Adam's steps shrink with the gradient.
    """
    pixels, labels = images.batch(torch.arange(len(images)), "cpu")
    with torch.no_grad():
        features = model[:-1](pixels).double()
    right = copy.deepcopy(model[-1]).double()(features).argmax(dim=1) == labels
    features, labels = features[right], labels[right]
    last = copy.deepcopy(model[-1]).double()
    optimizer = torch.optim.Adam(last.parameters(), lr=0.1, betas=(0.5, 0.5), eps=1e-300)
    for _ in range(2000):
        if float(margin(last(features), labels).detach().median()) > median:
            break
        optimizer.zero_grad()
        F.cross_entropy(last(features), labels).backward()
        optimizer.step()
    return nn.Sequential(*model[:-1], last.float()).eval()


def masked(plain: nn.Sequential, smoothed: nn.Sequential, train: ImageSet) -> dict[str, tuple[nn.Module, str]]:
    """Every mask on ``plain``, and ``smoothed``, trained with smoothed labels, over-trained; each with its cause."""
    found: dict[str, tuple[nn.Module, str]] = {
        name: (mask(plain).eval(), cause) for name, (mask, cause) in MASKS.items()
    }
    found["votes"] = (Votes(plain, train).eval(), "missing gradient")
    found["smoothed, over-trained"] = (overtrain(smoothed, train, 100.0), "saturation")
    return found
