"""A first look at a model on the images it is measured on: what would make the numbers mean something else."""

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

#: Images whose outputs and gradients are looked at, spread evenly over all.
PROBED = 32
#: Images in a pass, at most.
BATCH = 256


def first_look(
    model: nn.Module, images: ImageSet, numbers: Tensor, seed: int, device: torch.device, batch_size: int = BATCH
) -> dict[str, Any]:
    """Count the images that ``model`` is right for, and look at the outputs and gradients of a few.

    The facts are JSON values; :func:`gradscope.results.cautions.cautions` says in sentences what they mean. A pass
    takes ``batch_size`` images at most. Where memory is short, fewer are looked at.
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
    known, said = torch.cat(truth), torch.cat(predicted)
    places = torch.linspace(0, len(images) - 1, min(PROBED, size, len(images))).long()
    probed, labels = images.batch(places, device)
    outputs = look_at_outputs(model, probed, labels, numbers[places], seed, size)
    return {
        "images": len(images),
        "classes": len(images.classes),
        "right": int((known == said).sum()),
        "classes_labelled": len(known.unique()),
        "classes_predicted": len(said.unique()),
        "probed": len(places),
        "pixels": probed[0].numel(),
        "random": are_random(outputs),
        "flips": int(outputs["flips"].sum()),
        "depends_on_batch": depend_on_the_batch(outputs),
        "probabilities": are_probabilities(outputs),
        **_gradients(model, probed, labels, seed),
    }


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> dict[str, int | None]:
    """Count the images where the gradient of the cross-entropy is exactly zero, and where it is not finite.

    None where there is no gradient.
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
