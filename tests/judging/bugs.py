"""PGD as people write it by hand, whole and with one mistake each; the part that a judgement has to name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

#: Radii at which exact PGD leaves room to fall, and to be fooled, on digits.
RADII = {"linf": 0.1, "l2": 0.5}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def softmax_twice(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.softmax(dim=1), labels, reduction="sum")


def wrong_sign(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(logits, labels, reduction="sum")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (others.amax(dim=1) - logits.gather(1, labels[:, None]).squeeze(1)).sum()


def lengths(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def pgd(
    model,
    x,
    y,
    *,
    norm="linf",
    epsilon=None,
    loss=cross_entropy,
    iterations_of=20,
    size=0.125,
    start=True,
    floor=1e-30,
    ball=True,
    box=True,
    training=False,
    half=False,
    momentum=0.0,
    accumulate=False,
    at_image=False,
    raw=False,
    keep=False,
    halve=False,
    noise=0.0,
    normalise=None,
    whole=False,
    whole_ball=False,
    hasty=False,
):
    """Madry's attack: ``size`` is the step in multiples of epsilon. Each keyword can be the one mistake."""
    epsilon = RADII[norm] if epsilon is None else epsilon
    if training:
        model.train()
    away = torch.empty_like(x).uniform_(-epsilon, epsilon)
    if norm == "l2":
        away = away * (epsilon / lengths(away)).clamp(max=1)
    current = (x + away).clamp(0, 1) if start else x.clone()
    memory = torch.zeros_like(x)
    best = x.clone()
    for _ in range(iterations_of):
        current = current.detach().requires_grad_()
        shown = x.clone().requires_grad_() if at_image else current
        if normalise is not None:
            logits = model((shown - normalise[0]) / normalise[1])
        elif half:
            logits = model.half()(shown.half())
        else:
            logits = model(shown)
        if keep:
            fell = (logits.argmax(dim=1) != y).view(-1, 1, 1, 1)
            best = torch.where(fell, current.detach(), best)
        if hasty and bool((logits.argmax(dim=1) != y).any()):
            break
        (gradient,) = torch.autograd.grad(loss(logits, y), shown)
        gradient = gradient.float()
        memory = momentum * memory + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        gradient = memory if momentum else gradient
        if accumulate:
            memory = memory + gradient
            gradient = memory
        if raw:
            step = size * epsilon * gradient
        elif norm == "linf":
            step = size * epsilon * gradient.sign()
        else:
            step = size * epsilon * gradient / (gradient.norm() if whole else lengths(gradient)).clamp(min=floor)
        if noise:
            step = step + noise * epsilon * torch.empty_like(x).uniform_(-1, 1)
        delta = current.detach() + step - x
        if halve:  # towards the image again, once the model is fooled
            fell = (logits.argmax(dim=1) != y).view(-1, 1, 1, 1)
            delta = torch.where(fell, 0.5 * (current.detach() - x), delta)
        if ball:
            delta = (
                delta.clamp(-epsilon, epsilon) if norm == "linf" else delta * (epsilon / lengths(delta)).clamp(max=1)
            )
        if whole_ball:
            delta = delta * (epsilon / delta.norm()).clamp(max=1)
        current = x + delta
        if box:
            current = current.clamp(0, 1)
    if keep:
        with torch.no_grad():
            fell = (model(current).argmax(dim=1) != y).view(-1, 1, 1, 1)
        current = torch.where(fell, current, best)
    return current.detach()


@dataclass(frozen=True)
class Case:
    """An attack with the models it is tried on; ``part`` is its mistake, None where it has none."""

    name: str
    attack: Callable[..., Tensor]
    part: str | None
    norm: str = "linf"
    models: tuple[str, str] = ("SL", "SL-adv")
    verdicts: tuple[str, ...] = ("the attack is blind",)


SOUND = ("the attack is sound", "the attack is weaker")
INVALID = ("invalid examples",)
SHARP, MILD = ("SL x 5", "SL-adv x 20"), ("SL", "SL-adv x 5")


def case(name: str, part: str | None, *, norm: str = "linf", models=("SL", "SL-adv"), verdicts=None, **given) -> Case:
    verdicts = verdicts or (("the attack is blind",) if part else SOUND)
    return Case(name, partial(pgd, norm=norm, **given), part, norm, models, verdicts)


CASES = (
    case("mean loss, norm floored at 1e-6", "norm floor", norm="l2", models=SHARP, loss=mean_cross_entropy, floor=1e-6),
    case("sum, norm floored at 1", "norm floor", norm="l2", models=SHARP, floor=1.0),
    case("mean loss, floored at 0.01", "reduction", norm="l2", models=MILD, loss=mean_cross_entropy, floor=0.01),
    case("step along the gradient itself", "norm floor", norm="l2", models=SHARP, raw=True),
    case("normalised by the whole batch's norm", "batch", norm="l2", whole=True),
    case("projected by the whole batch's norm", "batch", norm="l2", whole_ball=True),
    case("stops once any image is fooled", "batch", hasty=True),
    case("half precision", "precision", models=SHARP, half=True),
    case("too small steps", "step size", size=0.01, start=False),
    case("too few steps", "steps", iterations_of=2, size=0.1, start=False),
    case("no projection", "projection", ball=False, verdicts=INVALID),
    case("no projection, L2", "projection", norm="l2", ball=False, verdicts=INVALID),
    case("no box", "box", box=False, verdicts=INVALID),
    case("a ball of half the radius", "projection", epsilon=0.05),
    case("nearer once it fooled, last iterate", "best iterate", halve=True),
    case("noisy steps across the ball", "step size", size=0.5, noise=2.0),
    case("model in training mode", "train mode", models=("dropout", "batch norm"), training=True),
    case("normalised outside the model", "normalisation", normalise=(0.8, 0.2)),
    case("softmax twice", "loss", models=("SL x 20", "SL-adv x 100"), loss=softmax_twice),
    case("begins at the image", "random start", models=("flat SL", "flat SL-adv"), start=False),
    case("sign error", "loss", loss=wrong_sign),
    case("always at the image, L2", None, norm="l2", at_image=True, verdicts=(*SOUND, "the attack is blind")),
    case("gradients never zeroed", None, accumulate=True, verdicts=(*SOUND, "the attack is blind")),
    case("plain", None),
    case("plain, L2", None, norm="l2"),
    case("momentum", None, momentum=1.0),
    case("margin, best kept", None, loss=margin, keep=True),
)
