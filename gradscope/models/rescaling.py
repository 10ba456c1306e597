"""Checkpoints whose logits are multiplied by a number: every decision stays, every softmax changes."""

from dataclasses import replace

import scipy
import torch
from torch import Tensor, nn

from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.losses import cross_entropy
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.inspection import measuring

#: Between which powers of ten the factor that calibrates is looked for.
_EXPONENTS = (-4.0, 4.0)


def rescaled(checkpoint: Checkpoint, factor: float, name: str) -> Checkpoint:
    """``checkpoint`` with its logits multiplied by ``factor``, by way of the last layer's weights and biases.

    ``name`` takes the place of the mode. Raises :class:`GradscopeError` where the last layer is not linear.
    """
    layer = _last_layer(checkpoint)
    scaled = {
        key: value * factor if key in (f"{layer}.weight", f"{layer}.bias") else value
        for key, value in checkpoint.state_dict.items()
    }
    config = checkpoint.config | {"logit_factor": factor}
    return replace(checkpoint, state_dict=scaled, mode=name, config=config)


def _last_layer(checkpoint: Checkpoint) -> str:
    """The name of the layer that gives the logits."""
    layers: list[tuple[str, nn.Module]] = [
        (name, layer) for name, layer in checkpoint.build().named_modules() if not next(layer.children(), None)
    ]
    name, last = layers[-1]
    if isinstance(last, nn.Linear) and last.out_features == checkpoint.spec.classes:
        return name
    raise GradscopeError(f"scale: a network that ends with a linear layer is allowed, got {type(last).__name__}")


def calibrating_factor(checkpoint: Checkpoint, images: ImageSet, device: torch.device) -> float:
    """The factor by which the logits' mean cross-entropy on ``images`` is smallest: one over the temperature.

    Raises :class:`GradscopeError` where there is none: every image is right, or the logits say nothing of the labels.
    """
    model = checkpoint.build().to(device)
    with measuring(model), torch.no_grad():
        parts = [(model(batch).double().cpu(), labels.cpu()) for _, batch, labels in images.batches(256, device)]
    logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))

    factor = best_factor(logits, labels)
    if factor is None:
        wrong = int((logits.argmax(dim=1) != labels).sum())
        raise GradscopeError(
            f"scale: no temperature calibrates this model on {len(images)} validation images, "
            f"of which {wrong} are wrong; a factor is allowed"
        )
    return factor


def best_factor(logits: Tensor, labels: Tensor) -> float | None:
    """The factor at which the mean cross-entropy of ``factor * logits`` ``(N, K)``, in float64, is smallest.

    It is one over the temperature of Guo et al. 2017. None where none between 1e-4 and 1e4 is: every image is right,
    or the logits say nothing of the labels.
    """

    def loss(exponent: float) -> float:
        return float(cross_entropy(logits * 10**exponent, labels).mean())

    found = scipy.optimize.minimize_scalar(loss, bounds=_EXPONENTS, method="bounded", options={"xatol": 1e-6})
    wrong = int((logits.argmax(dim=1) != labels).sum())
    if wrong == 0 or min(abs(found.x - end) for end in _EXPONENTS) < 0.01:
        return None
    return float(10**found.x)
