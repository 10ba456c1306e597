"""Why adversarial examples transfer: similarity of models' input gradients, and curvature of each model's loss.

Multiplying all logits by a positive factor changes neither.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradscope.distributed.units import is_out_of_memory
from gradscope.functional import cosine, flatten, norm_and_unit
from gradscope.losses import Loss, margin_loss, rescaled_cross_entropy
from gradscope.models.inspection import laid_out, measuring
from gradscope.probes.curvature import input_curvature

#: Most Hessian products per image, and the relative residual at which the iteration stops.
PRODUCTS, _TOLERANCE = 20, 1e-2


def input_gradients(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Compute the gradient of each image's own ``loss`` in the image, ``(N, D)``; zero if the logits ignore the image.

    The model is not changed.
    """
    with measuring(model), torch.enable_grad():
        point = laid_out(images.detach()).requires_grad_(True)
        losses = loss(model(point), labels)
        if not losses.requires_grad:
            return torch.zeros_like(flatten(images))
        [slope] = torch.autograd.grad(losses.sum(), point, allow_unused=True, materialize_grads=True)
        return flatten(slope)


def gradient_cosines(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """Compute the cosines of the margin's input gradients between M models, ``(M, M, N)`` (after Yang et al. 2021).

    ``images`` ``(N, C, H, W)``. TRS (Yang et al.) uses cross-entropy; this uses the margin. Its gradient never vanishes
    by rounding, and scaling the logits does not change its direction. With more than two classes, scaling does change
    the direction for cross-entropy and log-odds. NaN (undefined) where a gradient is exactly 0 or not finite.
    """
    units = [norm_and_unit(input_gradients(model, images, labels, margin_loss).double())[1] for model in models]
    return torch.stack([torch.stack([cosine(first, second) for second in units]) for first in units])


def relative_curvature(model: nn.Module, images: Tensor, labels: Tensor, *, numbers: Tensor, seed: int = 0) -> Tensor:
    """Compute ``|largest Hessian eigenvalue| / |gradient|`` of the rescaled cross-entropy in the image, ``(N,)``.

    The unit is 1 / unit pixel range: the inverse of the distance over which the gradient changes. The loss is
    cross-entropy with the two largest logits scaled to be 1 apart. Plain cross-entropy depends on the scale of the
    logits, and the Hessian of a margin is 0 in a ReLU network. Power iteration takes at most 20 products, so the value
    is a lower bound. ``numbers`` ``(N,)`` name the images' random starts. NaN (undefined) where the gradient is exactly
    0, not finite, or not differentiable in torch.
    """
    norms = norm_and_unit(input_gradients(model, images, labels, rescaled_cross_entropy))[0]
    try:
        eigenvalue = input_curvature(
            *(model, images, labels),
            numbers=numbers,
            seed=seed,
            loss=rescaled_cross_entropy,
            tolerance=_TOLERANCE,
            most=PRODUCTS,
        ).value
    except RuntimeError as error:  # NotImplementedError is one: some operations have no second derivative
        if is_out_of_memory(error):
            raise
        eigenvalue = torch.full_like(norms, math.nan)
    return torch.where(norms > 0, eigenvalue.abs() / norms, math.nan)
