"""The mechanisms of defences that were published and later broken, each with the known way round it."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.auditing.checks.base import Cause
from gradscope.data.image_set import ImageSet
from tests.calibration.networks import convolutional, fit, top_share


def _precise(outputs: Tensor) -> Tensor:
    """Outputs that training computed in bfloat16 as float32, others as they are."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


class Bypassable(nn.Module):
    """A part of a model with a known way round it, which is taken where ``bypassed`` is set."""

    bypassed = False


def bypassed(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that takes the way round in every part that has one."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, Bypassable):
            part.bypassed = True
    return model


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """``hard`` with the gradient of ``soft`` (BPDA, Athalye et al. 2018)."""
    return soft + (hard - soft).detach()


class Thermometer(Bypassable):
    """Each pixel as sixteen bits: whether it reaches 1/16, 2/16, ... Way round: ramps in the backward pass."""

    levels = 16

    def forward(self, images: Tensor) -> Tensor:
        steps = torch.arange(self.levels, device=images.device).reshape(1, 1, -1, 1, 1)
        ramps = (self.levels * images.unsqueeze(2) - steps).clamp(0, 1)
        hard = ramps.round()
        return (straight_through(hard, ramps) if self.bypassed else hard).flatten(1, 2)


class BlockRounding(Bypassable):
    """JPEG's loss, a channel at a time: the cosine coefficients of blocks of 8 x 8 pixels, rounded to multiples.

    Way round: the identity in the backward pass.
    """

    def __init__(self, coarseness: float) -> None:
        super().__init__()
        place = torch.arange(8.0)
        waves = torch.cos((2 * place + 1) * place.unsqueeze(1) * math.pi / 16) / 2
        waves[0] /= math.sqrt(2)
        self.register_buffer("waves", waves)
        # Coarser where the wave is finer, as the standard's table is.
        self.register_buffer("sizes", coarseness * (2 + place + place.unsqueeze(1)) / 255)

    @torch.autocast("cpu", enabled=False)
    def forward(self, images: Tensor) -> Tensor:
        blocks = images.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).transpose(3, 4)
        coefficients = self.waves @ blocks @ self.waves.T
        rounded = (coefficients / self.sizes).round() * self.sizes
        hard = (self.waves.T @ rounded @ self.waves).transpose(3, 4).flatten(4, 5).flatten(2, 3).clamp(0, 1)
        return straight_through(hard, images) if self.bypassed else hard


class Squeezed(Bypassable):
    """Pixels of eight levels, three bits. Way round: the identity in the backward pass."""

    levels = 7

    def forward(self, images: Tensor) -> Tensor:
        hard = (self.levels * images).round() / self.levels
        return straight_through(hard, images) if self.bypassed else hard


class LikelyPixels(Bypassable):
    """Each pixel as the likeliest of 256 values near its own: the mean of its neighbours, at most 16 levels away.

    PixelDefend's purifier with a smooth image in the place of its PixelCNN. Way round: the identity in the backward
    pass.
    """

    @torch.autocast("cpu", enabled=False)
    def forward(self, images: Tensor) -> Tensor:
        smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        likely = torch.minimum(torch.maximum(smooth, images - 16 / 255), images + 16 / 255)
        hard = (255 * likely).round() / 255
        return straight_through(hard, images) if self.bypassed else hard


class Smoothed(Bypassable):
    """The image of least total variation near the given one, by a solver that autograd does not see.

    Twenty steps down ``norm(u - x)^2 / 2 + 0.03 sum sqrt(norm(grad u)^2 + 1e-3)``. Way round: the identity in the
    backward pass.
    """

    @torch.autocast("cpu", enabled=False)
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            found = images
            for _ in range(20):
                across, down = (F.pad(found.diff(dim=dim), pad) for dim, pad in ((3, (0, 1)), (2, (0, 0, 0, 1))))
                length = (across**2 + down**2 + 1e-3).sqrt()
                across, down = across / length, down / length
                outward = -F.pad(across, (1, 0)).diff(dim=3) - F.pad(down, (0, 0, 1, 0)).diff(dim=2)
                found = found - 0.2 * (found - images + 0.03 * outward)
        return straight_through(found, images) if self.bypassed else found + 0 * images


class Quilt(Bypassable):
    """Each patch of 2 x 2 pixels as the nearest of 512 patches of clean images.

    Way round: the identity in the backward pass.
    """

    side = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patches", torch.rand(512, 3 * self.side**2))

    def learn(self, images: ImageSet, seed: int) -> None:
        """Take the patches from random places of ``images``."""
        stream = torch.Generator().manual_seed(seed)
        pixels, _ = images.batch(torch.randperm(len(images), generator=stream)[: len(self.patches)], "cpu")
        found = self._cut(pixels)
        places = torch.randint(0, found.shape[1], (len(found),), generator=stream)
        self.patches[: len(found)] = found[torch.arange(len(found)), places]

    def _cut(self, images: Tensor) -> Tensor:
        return F.unfold(images, self.side, stride=self.side).transpose(1, 2)

    @torch.autocast("cpu", enabled=False)
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            nearest = torch.cdist(self._cut(images), self.patches.expand(len(images), -1, -1)).argmin(dim=2)
            sewn = F.fold(self.patches[nearest].transpose(1, 2), images.shape[2:], self.side, stride=self.side)
        return straight_through(sewn, images) if self.bypassed else sewn + 0 * images


def quilted(model: nn.Module, images: ImageSet, seed: int) -> nn.Module:
    """Train on quilted images, whose patches are those of ``images``."""
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[0], Quilt)
    model[0].learn(images, seed)
    return fit(model, images, seed)


class Resized(nn.Module):
    """The image at a random size, by its nearest pixels, at a random place of an empty one."""

    def __init__(self, least: int, side: int) -> None:
        super().__init__()
        self.least, self.side = least, side

    def forward(self, images: Tensor) -> Tensor:
        size = int(torch.randint(self.least, self.side + 1, ()))
        left, top = (int(torch.randint(0, self.side - size + 1, ())) for _ in range(2))
        small = F.interpolate(images, size=(size, size), mode="nearest")
        return F.pad(small, (left, self.side - size - left, top, self.side - size - top))


class Pruned(Bypassable):
    """A random part of the activations, the larger the likelier, scaled so that the mean is unchanged.

    Way round: all of them.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        features = _precise(features).relu()
        if self.bypassed:
            return features
        flat = features.detach().flatten(1)
        likely = flat / flat.sum(dim=1, keepdim=True).clamp_min(1e-12)
        kept = (1 - (1 - likely) ** (self.share * flat.shape[1])).clamp_min(1e-6)
        return features * ((torch.rand_like(kept) < kept) / kept).reshape(features.shape)


class WinnersTakeAll(nn.Module):
    """The largest activations of a layer, the others zero."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        return features * (features >= top_share(features, self.share))


class Ensemble(Bypassable):
    """The logarithm of the mean of three networks' probabilities, as it is written down.

    Way round: the logarithm of the mean from logarithms of probabilities, which do not round to 0 and 1.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(convolutional(3 * seed + member, width=20) for member in range(3))

    def each(self, images: Tensor) -> Tensor:
        """Logits ``(N, 3, K)``."""
        return torch.stack([_precise(member(images)) for member in self.members], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.each(images)
        if self.bypassed:
            return logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(len(self.members))
        return (logits.softmax(dim=2).mean(dim=1) + 1e-20).log()


def diverse(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each member, less the entropy of the mean and the log of the diversity (Pang et al. 2019)."""
    assert isinstance(model, Ensemble)
    logits = model.each(images)
    fit_ = sum(F.cross_entropy(logits[:, member], labels) for member in range(3))
    likely = logits.softmax(dim=2)
    entropy = torch.special.entr(likely.mean(dim=1)).sum(dim=1).mean()
    others = likely.masked_select(~F.one_hot(labels, 10).bool().unsqueeze(1)).reshape(-1, 3, 9)
    units = F.normalize(others, dim=2, eps=1e-12)
    volume = torch.linalg.det(units @ units.transpose(1, 2) + 1e-6 * torch.eye(3))
    return fit_ - 2.0 * entropy - 0.5 * (volume.clamp_min(1e-12)).log().mean()


def _hadamard(order: int) -> Tensor:
    found = torch.ones(1, 1)
    while len(found) < order:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)], 0)
    return found


class OutputCode(Bypassable):
    """Sixteen bits by four networks, through tanh, and the share of each class's code among their agreements.

    Bits that tanh rounds to 1 agree with no other code, where the cut at 0 clips the outputs. Way round: the agreement
    of codes with what goes into tanh.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(convolutional(4 * seed + member, width=16, outputs=4) for member in range(4))
        self.register_buffer("codes", _hadamard(16)[1:11])

    def bits(self, images: Tensor) -> Tensor:
        """What goes into tanh, ``(N, 16)``."""
        return torch.cat([_precise(member(images)) for member in self.members], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        bits = self.bits(images)
        if self.bypassed:
            return bits @ self.codes.T
        agreement = (bits.tanh() @ self.codes.T).relu() + 1e-6
        return (agreement / agreement.sum(dim=1, keepdim=True)).log()


def hinge(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """How far each bit stays behind a margin of 30: three times what tanh rounds to 1 in float32."""
    assert isinstance(model, OutputCode)
    return (30 - model.codes[labels] * model.bits(images)).relu().mean()


#: The temperature of distillation; Papernot et al. 2016 go to 100.
TEMPERATURE = 100.0


def at_temperature(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images).float() / TEMPERATURE, labels)


def distil(model: nn.Module, images: ImageSet, seed: int) -> nn.Module:
    """Train on the probabilities of a teacher, both at :data:`TEMPERATURE`; used at a temperature of 1."""
    teacher = fit(convolutional(seed + 1000), images, seed, objective=at_temperature)

    def as_the_teacher(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = (teacher(images).float() / TEMPERATURE).softmax(dim=1)
        return F.cross_entropy(model(images).float() / TEMPERATURE, wanted)

    return fit(model, images, seed, objective=as_the_teacher)


#: Trains a model on images from a seed, in place.
Train = Callable[[nn.Module, ImageSet, int], nn.Module]


@dataclass(frozen=True)
class Defence:
    """A defence, who proposed and who broke it, and the cause that the audit has to name.

    The bypass is PGD on the margin in float64, on the way round where a part has one, along the mean gradient of
    ``draws`` passes over copies with Gaussian noise of standard deviation ``noise`` (pixel units).
    """

    proposed: str
    broken: str
    bypass: str
    cause: Cause
    build: Callable[[int], nn.Module]
    train: Train = fit
    draws: int = 1
    noise: float = 0.0


def _behind(part: Callable[[], nn.Module], channels: int = 3) -> Callable[[int], nn.Module]:
    return lambda seed: nn.Sequential(part(), *convolutional(seed, channels=channels))


DEFENCES: dict[str, Defence] = {
    "thermometer coding": Defence(
        "Buckman et al. 2018",
        "Athalye et al. 2018",
        "BPDA",
        "shattering",
        _behind(Thermometer, 3 * Thermometer.levels),
    ),
    "defensive distillation": Defence(
        "Papernot et al. 2016",
        "Carlini and Wagner 2017",
        "margin of the logits",
        "saturation",
        convolutional,
        distil,
    ),
    "random resizing and padding": Defence(
        "Xie et al. 2018",
        "Athalye et al. 2018",
        "EoT",
        "randomness",
        _behind(partial(Resized, 16, 32)),
        draws=32,
    ),
    "stochastic activation pruning": Defence(
        "Dhillon et al. 2018",
        "Athalye et al. 2018",
        "margin of the network without pruning",
        "randomness",
        partial(convolutional, activation=partial(Pruned, 0.3)),
    ),
    "k-winners-take-all": Defence(
        "Xiao et al. 2020",
        "Tramer et al. 2020",
        "gradients averaged over noise",
        "shattering",
        partial(convolutional, activation=partial(WinnersTakeAll, 0.04)),
        draws=16,
        noise=4 / 255,
    ),
    "ensemble diversity": Defence(
        "Pang et al. 2019",
        "Tramer et al. 2020",
        "margin of stable log-probabilities",
        "saturation",
        Ensemble,
        partial(fit, objective=diverse),
    ),
    "error-correcting output codes": Defence(
        "Verma and Swami 2019",
        "Tramer et al. 2020",
        "margin before tanh",
        "clipped output",
        OutputCode,
        partial(fit, objective=hinge),
    ),
    "JPEG": Defence(
        "Guo et al. 2018",
        "Athalye et al. 2018",
        "BPDA",
        "shattering",
        _behind(partial(BlockRounding, 6.0)),
    ),
    "PixelDefend": Defence(
        "Song et al. 2018",
        "Athalye et al. 2018",
        "BPDA",
        "shattering",
        _behind(LikelyPixels),
    ),
    "total variation": Defence(
        "Guo et al. 2018",
        "Athalye et al. 2018",
        "BPDA",
        "missing gradient",
        _behind(Smoothed),
    ),
    "image quilting": Defence(
        "Guo et al. 2018",
        "Athalye et al. 2018",
        "BPDA",
        "shattering",
        _behind(Quilt),
        quilted,
    ),
    "feature squeezing": Defence(
        "Xu et al. 2018",
        "He et al. 2017",
        "BPDA",
        "shattering",
        _behind(Squeezed),
    ),
}
