"""Multiply a checkpoint's logits by a number: every prediction stays the same, every softmax changes."""

from dataclasses import replace

import scipy
import torch
from torch import Tensor, nn

from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.losses import cross_entropy
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.inspection import measuring

#: The powers of ten between which the calibrating factor is searched.
_EXPONENTS = (-4.0, 4.0)


def rescaled(checkpoint: Checkpoint, factor: float, name: str) -> Checkpoint:
    """Multiply the logits of ``checkpoint`` by ``factor``, through the last layer's weights and biases.

    ``name`` replaces the mode. Raises :class:`GradscopeError` if the last layer is not linear.
    """
    layer = _last_layer(checkpoint)
    scaled = {
        key: value * factor if key in (f"{layer}.weight", f"{layer}.bias") else value
        for key, value in checkpoint.state_dict.items()
    }
    config = checkpoint.config | {"logit_factor": factor}
    return replace(checkpoint, state_dict=scaled, mode=name, config=config)


def _last_layer(checkpoint: Checkpoint) -> str:
    """Find the name of the layer that computes the logits."""
    layers: list[tuple[str, nn.Module]] = [
        (name, layer) for name, layer in checkpoint.build().named_modules() if not next(layer.children(), None)
    ]
    name, last = layers[-1]
    if isinstance(last, nn.Linear) and last.out_features == checkpoint.spec.classes:
        return name
    raise GradscopeError(f"scale: the network must end with a linear layer, got {type(last).__name__}")


def calibrating_factor(checkpoint: Checkpoint, images: ImageSet, device: torch.device) -> float:
    """Find the factor of the logits with the smallest mean cross-entropy on ``images``: one over the temperature.

    Raises :class:`GradscopeError` if there is none: every image is right, or the logits carry no information on the
    labels.
    """
    model = checkpoint.build().to(device)
    with measuring(model), torch.no_grad():
        parts = [(model(batch).double().cpu(), labels.cpu()) for _, batch, labels in images.batches(256, device)]
    logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))

    factor = best_factor(logits, labels)
    if factor is None:
        wrong = int((logits.argmax(dim=1) != labels).sum())
        raise GradscopeError(
            f"scale must be a factor, as no temperature calibrates this model on {len(images)} validation images, "
            f"of which {wrong} are wrong"
        )
    return factor


def best_factor(logits: Tensor, labels: Tensor) -> float | None:
    """Find the factor with the smallest mean cross-entropy of ``factor * logits`` ``(N, K)``, in float64.

    It is one over the temperature of Guo et al. 2017. None if there is no minimum between 1e-4 and 1e4: every image is
    right, or the logits carry no information on the labels.

    >>> factor = best_factor(torch.tensor([[4.0, 0.0]] * 4).double(), torch.tensor([0, 0, 0, 1]))
    >>> round(factor, 4)  # three of four right: softmax 3/4 at log(3) = 4 * factor
    0.2747
    """

    def loss(exponent: float) -> float:
        return float(cross_entropy(logits * 10**exponent, labels).mean())

    minimum = scipy.optimize.minimize_scalar(loss, bounds=_EXPONENTS, method="bounded", options={"xatol": 1e-6})
    wrong = int((logits.argmax(dim=1) != labels).sum())
    if wrong == 0 or min(abs(minimum.x - end) for end in _EXPONENTS) < 0.01:
        return None
    return float(10**minimum.x)
