"""Load a model to measure, of gradscope or foreign, with the names that its results carry."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.config import Data
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.foreign import load_foreign
from gradscope.models.inspection import check_differentiable, check_fits, grey, returning_logits
from gradscope.models.references import ModelRef, check_references, weights_in_order


@dataclass(frozen=True)
class Foreign:
    """The options for models trained elsewhere; ``weights`` has one file for each of them, in order, or none."""

    weights: tuple[Path, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust_code: bool = False
    ignore_class_names: bool = False


@dataclass(frozen=True)
class ModelSource:
    """A model before it is built: its reference, its label in the results and, if it is gradscope's, its checkpoint."""

    named: ModelRef
    label: str
    checkpoint: Checkpoint | None
    weights: Path | None

    @property
    def text(self) -> str:
        """The reference as the user wrote it."""
        return self.named.text

    @property
    def data(self) -> Data | None:
        """The data set that gradscope trained the model on; None for a foreign model."""
        if self.checkpoint is None:
            return None
        if "data" not in self.checkpoint.config:
            raise GradscopeError(f"model: {self.text} is damaged: its configuration must name its data, got none")
        return Data.parse(self.checkpoint.config["data"])


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, in eval mode, that takes images in [0, 1] and fits the data to measure it on."""

    label: str
    model: nn.Module
    mode: str
    architecture: str
    seed: int | None

    def identity(self, dataset: str, attack: str) -> dict[str, Any]:
        """Make the columns IDENTITY of a row: the model, data set and attack it belongs to."""
        return {
            "checkpoint": self.label,
            "mode": self.mode,
            "dataset": dataset,
            "arch": self.architecture,
            "seed": self.seed,
            "attack": attack,
        }


def read_references(texts: Sequence[str], foreign: Foreign) -> list[ModelSource]:
    """Parse each CKPT of a command and read gradscope's checkpoints. Labels are unique."""
    references = check_references(
        texts, weights=foreign.weights, mean=foreign.mean, std=foreign.std, trust_code=foreign.trust_code
    )
    weights = weights_in_order(references, foreign.weights)
    return [
        ModelSource(
            reference,
            label,
            None if reference.is_foreign else checkpoints.load(Path(reference.text), trust_code=foreign.trust_code),
            file,
        )
        for reference, label, file in zip(references, _labels(references, weights), weights, strict=True)
    ]


def _labels(references: Sequence[ModelRef], weights: Sequence[Path | None]) -> list[str]:
    """Label a checkpoint by its file's stem, a foreign model by its text; add path or weights if two are the same."""
    short = [ref.text if ref.is_foreign else ref.short_name for ref in references]
    full = [ref.text if file is None else f"{ref.text}@{file}" for ref, file in zip(references, weights, strict=True)]
    return [whole if short.count(name) > 1 else name for name, whole in zip(short, full, strict=True)]


def load_model(
    reference: ModelSource,
    images: ImageSet,
    foreign: Foreign,
    device: torch.device,
    *,
    differentiable: bool = True,
    argument: str = "model",
) -> LoadedModel:
    """Build the model and check that it fits ``images``; raises :class:`GradscopeError` for every misfit.

    With ``differentiable``, also for logits that are detached from the image or not finite. Messages begin with
    ``argument``.
    """
    checkpoint = reference.checkpoint
    if checkpoint is not None:
        if checkpoint.spec.channels != images.channels:
            channels = "1 channel" if checkpoint.spec.channels == 1 else f"{checkpoint.spec.channels} channels"
            raise GradscopeError(
                f"{argument}: {reference.label} takes images of {channels}, {images.name} has {images.channels}"
            )
        _require_classes(f"{argument}: {reference.label}", checkpoint.classes, images, foreign.ignore_class_names)
        seed, architecture = checkpoint.config.get("seed"), checkpoint.spec.architecture
        loaded = LoadedModel(reference.label, checkpoint.build(), checkpoint.mode, architecture, seed)
    else:
        model = load_foreign(
            reference.named,
            weights=reference.weights,
            classes=len(images.classes),
            channels=images.channels,
            size=(images.height, images.width),
            mean=foreign.mean,
            std=foreign.std,
            trust_code=foreign.trust_code,
        )
        loaded = LoadedModel(reference.label, model, "foreign", reference.text.partition(":")[2], None)
    name = f"{argument}: {reference.label}"
    model = returning_logits(loaded.model.to(device), grey(images, device), name)
    check_fits(model, images, name=name, device=device, finite=differentiable)
    if differentiable:
        check_differentiable(model, images, name=name, device=device)
    return replace(loaded, model=model)


def _require_classes(name: str, trained: tuple[str, ...], images: ImageSet, ignore_names: bool) -> None:
    """Check the class names in the order of the logits; if they differ, every accuracy is of other classes."""
    if len(trained) != len(images.classes):
        wanted = f"the {len(images.classes)} classes of {images.name}"
        raise GradscopeError(f"{name} must have {wanted}, got {len(trained)}")
    for index, (ours, theirs) in enumerate(zip(trained, images.classes, strict=True)):
        if ours != theirs and not ignore_names:
            raise GradscopeError(
                f"{name} has {ours!r} as class {index}, {images.name} has {theirs!r}; "
                "pass `ignore_class_names` if they mean the same"
            )
