"""Prepare a training run: its training and validation images, and its network."""

import torch
from torch import Tensor, nn

from gradscope.config import Training
from gradscope.data.image_set import ImageSet, training_split
from gradscope.data.names import DATASETS
from gradscope.errors import GradscopeError
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.checkpoint import Checkpoint, load_strictly
from gradscope.models.inspection import LogitsCheck, check_fits
from gradscope.models.names import is_own
from gradscope.seeding import seeded


def split(training: Training, train_set: ImageSet) -> tuple[Tensor, Tensor]:
    """Split the images into indices to train on and indices to validate on.

    Raises :class:`GradscopeError` if there is only one class, or no image to validate on.
    """
    # Indices, not copies, so that a set larger than memory stays a memory map.
    trained, held_out = training_split(
        train_set.labels, training.validation_fraction, training.seed, training.train_samples
    )
    argument = "dataset" if training.data.dataset in DATASETS else "y"
    if len(train_set.classes) < 2:
        raise GradscopeError(f"{argument} must hold at least 2 classes, got {len(train_set.classes)}")
    if len(held_out):
        return trained, held_out
    _, counts = train_set.labels.unique(return_counts=True)
    if int(counts.max()) > 1:
        raise GradscopeError(
            "train_samples must include 2 images of some class, one of them to validate on: at least "
            f"{len(counts) + 1} for {train_set.name}, got {training.train_samples}"
        )
    raise GradscopeError(
        f"{argument} must have a class with at least 2 training images, one to validate on; {train_set.name} has none"
    )


def new_network(
    training: Training, train_set: ImageSet, trained: Tensor, initial: Checkpoint | None, *, trust_code: bool
) -> tuple[ModelSpec, nn.Module]:
    """Build the network on the CPU, with new weights or those of ``initial``; returns its specification, too.

    It normalises with the statistics of the images ``trained``; a user's own architecture normalises itself.
    """
    own = is_own(training.architecture)
    mean, std = ((0.0,), (1.0,)) if own else train_set.channel_statistics(trained)
    height, width = train_set.height, train_set.width
    spec = ModelSpec(
        architecture=training.architecture,
        classes=len(train_set.classes),
        channels=train_set.channels,
        image_size=height if height == width else (height, width),
        mean=mean,
        std=std,
    )
    with seeded(training.seed, "weights"):
        network = build(spec, trust_code=trust_code)
    if own:
        name = f"architecture: {training.architecture}"
        check_fits(network, train_set, name=name, device=torch.device("cpu"))
        network.register_forward_hook(LogitsCheck(name, len(train_set.classes)))
    if initial is not None:
        load_strictly(network, initial.state_dict, f"from: the weights of {initial.mode!r} must fit this model")
    return spec, network
