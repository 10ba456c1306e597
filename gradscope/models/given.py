"""A model that a user has in memory, made ready to be measured."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import nn

from gradscope.data.given import with_classes
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models.architectures import check_normalisation, normalised
from gradscope.models.inspection import logits_for, returning_logits
from gradscope.models.loading import LoadedModel
from gradscope.models.references import require_both

#: A p-value from which on an accuracy is called chance.
_SIGNIFICANT = 0.05

Numbers = float | Sequence[float]


def given_model(
    model: nn.Module,
    images: ImageSet,
    *,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    label: str = "model",
) -> tuple[LoadedModel, ImageSet]:
    """``model``, on its own device, and ``images`` with as many classes as it has.

    It takes images in [0, 1], after ``(x - mean) / std`` where these are given (one number, or one for each channel),
    and returns logits ``(N, K)`` or an object with ``.logits``. Two of ``images`` are shown to it; parameters,
    gradients, buffers, flags and random states stay as they were. Every misfit raises :class:`GradscopeError`; logits
    that autograd cannot follow are none.
    """
    if not isinstance(model, nn.Module):
        raise GradscopeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _require_evaluation(model)
    require_both(mean, std)
    device = device_of(model)
    batch, _ = images.batch(torch.arange(min(2, len(images))), device)
    ready = model
    if mean is not None and std is not None:
        shift, scale = _numbers(mean, "mean"), _numbers(std, "std")
        check_normalisation(shift, scale, images.channels)
        ready = normalised(model, shift, scale).eval()
        ready[0].to(device)
    ready = returning_logits(ready, batch, "model")
    logits = logits_for(ready, batch, "model")
    if logits.shape[1] < 2:
        raise GradscopeError(f"model must return logits of at least 2 classes, got {logits.shape[1]}")
    if not logits.isfinite().all():
        raise GradscopeError("model must return finite logits, got NaN or infinity")
    return LoadedModel(label, ready, "foreign", type(model).__name__, None), with_classes(images, logits.shape[1])


def _numbers(value: Numbers, argument: str) -> tuple[float, ...]:
    try:
        return tuple(np.asarray(value, dtype=float).reshape(-1).tolist())
    except (TypeError, ValueError):
        raise GradscopeError(f"{argument} must be one number, or one for each channel, got {value!r}") from None


def _require_evaluation(model: nn.Module) -> None:
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        where = "" if "" in training else f" in its part {training[0]}"
        raise GradscopeError(f"model must be in evaluation mode, got training mode{where}; call model.eval()")


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter, or else of the first buffer; the CPU where there is neither."""
    first = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def at_chance(right: int, images: int, classes: int) -> str | None:
    """A warning where ``right`` of ``images`` are no more than guessing gives (binomial test), or None.

    Where so few images were shown that even a perfect model could not be told from chance, nothing is said.
    """
    chance = 1 / classes
    if chance**images > _SIGNIFICANT:
        return None
    p_value = float(stats.binomtest(right, images, chance, alternative="greater").pvalue)
    if p_value < _SIGNIFICANT:
        return None
    return (
        f"{right} of {images} images are right, no more than guessing among {classes} classes gives "
        f"(binomial test, p = {p_value:.2g}): "
        "gradients of a model that has learned nothing say nothing; check labels, mean= and std="
    )
