"""A first look at a model before it is measured: facts that would change the meaning of the numbers."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.auditing.outputs import are_probabilities, are_random, depend_on_the_batch, look_at_outputs
from gradscope.data.image_set import ImageSet
from gradscope.distributed.units import halving
from gradscope.losses import cross_entropy
from gradscope.models.inspection import measuring
from gradscope.seeding import seeded

#: Number of images whose outputs and gradients are examined, spread evenly over all.
PROBED = 32
#: Most images in one pass.
BATCH = 256


def first_look(
    model: nn.Module, images: ImageSet, numbers: Tensor, seed: int, device: torch.device, batch_size: int = BATCH
) -> dict[str, Any]:
    """Count the images that ``model`` classifies correctly, and examine the outputs and gradients of a few.

    Returns facts as JSON values; :func:`gradscope.results.cautions.cautions` turns them into sentences. A pass takes at
    most ``batch_size`` images, and fewer if memory is short.
    """
    return halving(partial(_look, model, images, numbers, seed, device), batch_size)


def _look(
    model: nn.Module, images: ImageSet, numbers: Tensor, seed: int, device: torch.device, size: int
) -> dict[str, Any]:
    truth, predicted = [], []
    with measuring(model), torch.no_grad(), seeded(seed, "first look"):
        for _, batch, labels in images.batches(size, device):
            truth.append(labels)
            predicted.append(model(batch).argmax(dim=1))
    known, classes = torch.cat(truth), torch.cat(predicted)
    places = torch.linspace(0, len(images) - 1, min(PROBED, size, len(images))).long()
    probed, labels = images.batch(places, device)
    outputs = look_at_outputs(model, probed, labels, numbers[places], seed, size)
    return {
        "images": len(images),
        "classes": len(images.classes),
        "right": int((known == classes).sum()),
        "classes_labelled": len(known.unique()),
        "classes_predicted": len(classes.unique()),
        "probed": len(places),
        "pixels": probed[0].numel(),
        "random": are_random(outputs),
        "flips": int(outputs["flips"].sum()),
        "depends_on_batch": depend_on_the_batch(outputs),
        "probabilities": are_probabilities(outputs),
        **_gradients(model, probed, labels, seed),
    }


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> dict[str, int | None]:
    """Count the images whose cross-entropy gradient is exactly zero, and those where it is not finite.

    None if the model has no gradient.
    """
    point = images.detach().requires_grad_()
    with measuring(model), torch.enable_grad(), seeded(seed, "first look"):
        logits = model(point)
        if not logits.requires_grad:
            return {"zero_gradients": None, "not_finite_gradients": None}
        (slope,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), point)
    slopes = slope.flatten(1)
    return {
        "zero_gradients": int((slopes == 0).all(dim=1).sum()),
        "not_finite_gradients": int((~slopes.isfinite()).any(dim=1).sum()),
    }
