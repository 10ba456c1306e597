"""Prepare a model from a user's memory for measurement."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from gradscope.data.given import with_classes
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError, described
from gradscope.models.architectures import check_normalisation, normalised
from gradscope.models.inspection import device_of, into_evaluation, logits_for, returning_logits
from gradscope.models.loading import LoadedModel
from gradscope.models.references import require_both

Numbers = float | Sequence[float]


def given_model(
    model: nn.Module,
    images: ImageSet,
    *,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    label: str = "model",
) -> tuple[LoadedModel, ImageSet]:
    """Check ``model`` on its own device; returns it and ``images`` with as many classes as it has.

    The model takes images in [0, 1], or ``(x - mean) / std`` of them if these are given (one number, or one for each
    channel). It returns logits ``(N, K)`` or an object with ``.logits``. The check runs it on two of ``images``;
    parameters, gradients, buffers, flags and random states do not change. Raises :class:`GradscopeError` for every
    misfit. Logits without a gradient are accepted.
    """
    if not isinstance(model, nn.Module):
        raise no_module(model)
    _require_evaluation(model)
    require_both(mean, std)
    device = device_of(model)
    batch, _ = images.batch(torch.arange(min(2, len(images))), device)
    ready = model
    if mean is not None and std is not None:
        shift, scale = _numbers(mean, "mean"), _numbers(std, "std")
        check_normalisation(shift, scale, images.channels)
        ready = into_evaluation(normalised(model, shift, scale))
        ready.get_submodule("normalise").to(device)
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
        message = f"{argument} must be one number, or one for each channel, got {described(value)}"
        raise GradscopeError(message) from None


def no_module(model: object) -> GradscopeError:
    """Make the error for an object that is not a model, with advice."""
    got, hint = type(model).__name__, ""
    if isinstance(model, type):
        got, hint = f"the class {model.__name__}", f"; call it: {model.__name__}()"
    elif isinstance(model, torch.export.ExportedProgram):
        hint = "; pass its .module()"
    elif isinstance(model, Tensor) or (isinstance(model, Mapping) and _are_tensors(model.values())):
        got, hint = "a state dict", "; build the model and call its load_state_dict"
    elif isinstance(model, Mapping | Sequence):
        hint = '; pass several models as a dictionary by name, {"a": model, "b": other}'
    elif callable(model):
        hint = "; make it a module's forward: class Net(torch.nn.Module): forward = staticmethod(FUNCTION)"
    return GradscopeError(f"model must be a torch.nn.Module, a path, or several of these by name, got {got}{hint}")


def _are_tensors(values: Iterable[object]) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _require_evaluation(model: nn.Module) -> None:
    if isinstance(model, GraphModule) and "eval" in vars(model):
        return  # made by torch.export, which fixed its mode; the flags mean nothing
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        where = "" if "" in training else f" in its part {training[0]}"
        raise GradscopeError(f"model must be in evaluation mode, got training mode{where}; call model.eval()")
