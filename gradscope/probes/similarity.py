"""How alike models' input gradients are at the same images, and how curved each one's loss is: why examples transfer.

Both are free of the logits' scale: a factor above 0 on all logits changes neither.
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

#: Products with the Hessian for each image, at most, and the relative residual at which they end.
PRODUCTS, _TOLERANCE = 20, 1e-2


def input_gradients(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """The gradient of each image's own ``loss`` in the image, ``(N, D)``; zero where the logits do not depend on it.

    The model is left as found.
    """
    with measuring(model), torch.enable_grad():
        point = laid_out(images.detach()).requires_grad_(True)
        losses = loss(model(point), labels)
        if not losses.requires_grad:
            return torch.zeros_like(flatten(images))
        [slope] = torch.autograd.grad(losses.sum(), point, allow_unused=True, materialize_grads=True)
        return flatten(slope)


def gradient_cosines(models: Sequence[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """Cosine of the margin's gradients in the image of every two of M models, ``(M, M, N)`` (after Yang et al. 2021).

    ``images`` ``(N, C, H, W)``. The margin rather than cross-entropy, as TRS has it: its gradient never vanishes by
    rounding, and its direction depends on no factor of the logits, as that of cross-entropy, and of the log-odds, does
    where there are more than two classes. NaN, "undefined", where a gradient is exactly 0 or not finite.
    """
    units = [norm_and_unit(input_gradients(model, images, labels, margin_loss).double())[1] for model in models]
    return torch.stack([torch.stack([cosine(one, other) for other in units]) for one in units])


def relative_curvature(model: nn.Module, images: Tensor, labels: Tensor, *, numbers: Tensor, seed: int = 0) -> Tensor:
    """``|largest Hessian eigenvalue| / |gradient|`` of the rescaled cross-entropy in the image, ``(N,)``.

    In 1 / unit pixel range: one over the distance after which the gradient is another. Of cross-entropy with the two
    largest logits brought 1 apart, for that of the logits as they are depends on their scale, and a margin's Hessian
    is 0 in a network of ReLUs. Power iteration of at most 20 products, so a lower bound. ``numbers`` ``(N,)`` name the
    images, for its start. NaN, "undefined", where the gradient is exactly 0 or not finite, or torch does not
    differentiate it.
    """
    norms = norm_and_unit(input_gradients(model, images, labels, rescaled_cross_entropy))[0]
    try:
        found = input_curvature(
            *(model, images, labels),
            numbers=numbers,
            seed=seed,
            loss=rescaled_cross_entropy,
            tolerance=_TOLERANCE,
            most=PRODUCTS,
        ).value
    except RuntimeError as error:  # as NotImplementedError is: some operations have a first derivative alone
        if is_out_of_memory(error):
            raise
        found = torch.full_like(norms, math.nan)
    return torch.where(norms > 0, found.abs() / norms, math.nan)
