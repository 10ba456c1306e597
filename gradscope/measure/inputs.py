"""Load the models that a request names, and the images to measure them on."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from gradscope.attacks.own_loss import OwnLoss, own_loss
from gradscope.auditing.outputs import are_probabilities, range_of
from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, Splits
from gradscope.data.names import DATASETS
from gradscope.errors import GradscopeError, lookup
from gradscope.measure.options import Request
from gradscope.measure.options.adaptive import Adaptive, AdaptiveLoss, name_of
from gradscope.models.adaptive import Averaged, with_backward
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.failures import explained_failures
from gradscope.models.inspection import LogitsCheck, check_differentiable, grey, measuring
from gradscope.models.loading import Foreign, LoadedModel, ModelSource, load_model, read_references
from gradscope.models.references import ModelRef
from gradscope.seeding import generator, seeded


@dataclass(frozen=True)
class Chosen:
    """The images to measure and their indices in the test set."""

    images: ImageSet
    numbers: torch.Tensor
    available: int


@dataclass(frozen=True)
class Entry:
    """A model of a measurement, its images, and its surrogates: other models whose examples are tried on it."""

    reference: ModelSource
    chosen: Chosen
    surrogates: tuple[ModelSource, ...] = ()


def largest_image(entries: Sequence[Entry]) -> int:
    """Return the number of values of the largest image of ``entries``."""
    return max(entry.chosen.images.images[0].numel() for entry in entries)


@dataclass(frozen=True)
class Given:
    """Models in a user's memory, by name, and the images to measure them on.

    ``everything``: measure all images if no number is given (a landscape measures its default number).
    """

    models: Mapping[str, LoadedModel]
    images: ImageSet
    everything: bool = True


class Inputs:
    """The models and images of a request; data sets are cached.

    ``given``: models and images in memory, in place of files and data sets.
    """

    def __init__(self, request: Request, device: torch.device, given: Given | None = None) -> None:
        self.request, self.device, self.given = request, device, given
        self.foreign = Foreign(**{name: getattr(request.foreign, name) for name in type(request.foreign).model_fields})
        self._loaded: dict[Data, Splits] = {}
        self._models: WeakValueDictionary[tuple[str, int], nn.Module] = WeakValueDictionary()
        self._checks = ExitStack()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raise :class:`GradscopeError` inside if a model that was loaded here fails, or does not return logits."""
        with self._checks, explained_failures(self._label_of):
            yield

    def references(self, extra: Sequence[str] = ()) -> list[ModelSource]:
        """Return every model of the request, then those of ``extra`` that are not among them."""
        named = self.request.models
        if self.given is not None:
            wanted = dict.fromkeys([*named, *extra])
            models = {name: lookup(self.given.models, name, "model") for name in wanted}
            return [ModelSource(ModelRef(name, "memory"), name, None, None) for name in models]
        return read_references([*named, *(text for text in dict.fromkeys(extra) if text not in named)], self.foreign)

    def splits(self, reference: ModelSource) -> Splits:
        """Load the data set of the request, or else the checkpoint's own, with the request's location of it."""
        if self.given is not None:
            return Splits(self.given.images, self.given.images)
        own, given = reference.data, self.request.data.given()
        if own is None and "dataset" not in given:
            raise GradscopeError(f"dataset must be given for the foreign model {reference.text}, to measure it on")
        if own is not None and "dataset" not in given and own.dataset not in DATASETS:
            raise GradscopeError(
                f"dataset must be given for {reference.label}, trained on {own.dataset}, which is not a known data set"
            )
        known = own.model_dump() if own is not None and "dataset" not in given else {}
        data = Data.parse(known | given)
        try:
            if data not in self._loaded:
                self._loaded[data] = sources.load(data, download=self.request.data.download)
            return self._loaded[data]
        except GradscopeError as error:
            if known.get("data_root") is None or "data_root" in given:
                raise
            raise GradscopeError(
                f"{error} ({reference.label} was trained from there; give its new place as `data_root`)"
            ) from None

    def one_data_set(self, references: Sequence[ModelSource], purpose: str) -> Splits:
        """Load the data set of all ``references``; ``purpose`` needs them to have the same."""
        first, *others = [self.splits(reference) for reference in references]
        for reference, splits in zip(references[1:], others, strict=True):
            if splits.test.fingerprint != first.test.fingerprint:
                raise GradscopeError(
                    f"model must be models of one data set in a {purpose}: {references[0].label} has "
                    f"{first.test.name}, {reference.label} {splits.test.name}; pass `dataset` to measure all on one"
                )
        return first

    def load(
        self, reference: ModelSource, images: ImageSet, *, differentiable: bool = True, argument: str = "model"
    ) -> LoadedModel:
        """Build a model on the device; raises :class:`GradscopeError` if it does not fit ``images``."""
        if self.given is not None:
            subject = self.given.models[reference.label]
            if differentiable:
                name = f"{argument}: {reference.label}"
                check_differentiable(subject.model, images, name=name, device=self.device)
        else:
            how: dict[str, Any] = {"differentiable": differentiable, "argument": argument}
            subject = load_model(reference, images, self.foreign, self.device, **how)
        key = subject.label, id(subject.model)
        if self._models.get(key) is None:
            self._models[key] = subject.model
            if not isinstance(subject.model, torch.jit.ScriptModule):  # TorchScript does not accept hooks
                check = LogitsCheck(f"model: {subject.label}", len(images.classes))
                self._checks.callback(subject.model.register_forward_hook(check).remove)
        return subject

    def attacked(self, reference: ModelSource, images: ImageSet) -> LoadedModel:
        """Build a model as the attacks see it: with stand-ins in the backward pass, or averaged over draws."""
        subject, options = self.load(reference, images, differentiable=False), self.request.options
        if not isinstance(options, Adaptive) or not (options.standins or options.draws):
            return subject
        model, batch = subject.model, grey(images, self.device)
        if options.standins:
            model = with_backward(model, options.standins, batch, trust_code=self.foreign.trust_code)
        if options.draws:
            model = _averaged(model, options.draws, batch)
        self._models[subject.label, id(model)] = model
        return replace(subject, model=model)

    def loss(self, images: ImageSet) -> OwnLoss | None:
        """Load the request's own loss and try it on the number of classes of ``images``; None if there is none."""
        options, classes = self.request.options, len(images.classes)
        if not isinstance(options, AdaptiveLoss) or options.loss is None:
            return None
        trusted = self.foreign.trust_code
        return own_loss(options.loss, name_of(options.loss), classes, self.device, trust_code=trusted)

    def _label_of(self, value: object) -> str | None:
        """Return the label of a source, or of a model that was loaded here and is in use; None for other values."""
        if isinstance(value, ModelSource):
            return value.label
        return next((label for (label, _), model in self._models.items() if model is value), None)

    def choose(self, test: ImageSet, count: int | None, argument: str) -> Chosen:
        """Draw ``count`` test images by the seed, without replacement, in the set's order; None: the default or all."""
        available, options = len(test), self.request.options
        if count is None:
            everything = self.given is not None and self.given.everything and argument == "samples"
            count = available if everything else min(options.default_images, available)
        if not 1 <= count <= available:
            raise GradscopeError(
                f"{argument} must be from 1 to {available}, the number of test images of {test.name}, got {count}"
            )
        return take(test, order(test, options.seed)[:count].sort().values)


def _averaged(model: nn.Module, draws: int, batch: torch.Tensor) -> Averaged:
    with measuring(model), torch.no_grad(), seeded(0, "draws"):
        drawn = model(batch)
    if are_probabilities(range_of(drawn)):
        raise GradscopeError("draws must be left out for a model that returns probabilities; return their logarithm")
    return Averaged(model, draws)


def take(test: ImageSet, numbers: torch.Tensor) -> Chosen:
    """Take the test images at ``numbers`` ``(M,)``."""
    return Chosen(test.subset(numbers), numbers, len(test))


def order(test: ImageSet, seed: int) -> torch.Tensor:
    """Return the order in which ``seed`` draws the test images."""
    return torch.randperm(len(test), generator=generator(seed, "images"))


def describe(entry: Entry) -> dict[str, Any]:
    """Describe a model and its images for the manifest."""
    reference, images = entry.reference, entry.chosen
    checkpoint = reference.checkpoint
    return {
        "label": reference.label,
        "source": reference.text,
        "weights": None if reference.weights is None else str(reference.weights),
        "sha256": _digest(reference),
        "fingerprint": None if checkpoint is None else checkpoint.fingerprint,
        "config": None if checkpoint is None else _published(checkpoint.config),
        "epochs": None if checkpoint is None else _epochs(checkpoint),
        "trained": None if checkpoint is None else checkpoint.provenance,
        "data": {
            "name": images.images.name,
            "split": "test",
            "images": len(images.images),
            "of": images.available,
            "fingerprint": images.images.fingerprint,
        },
        "seconds": {},
    }


def _epochs(checkpoint: Checkpoint) -> dict[str, int | None]:
    return {"done": checkpoint.epochs, "planned": checkpoint.planned_epochs, "kept": checkpoint.kept_epoch}


def _digest(reference: ModelSource) -> str | None:
    """Compute the SHA-256 of the file of the weights; None if a factory brought its own."""
    file = Path(reference.text) if reference.checkpoint is not None else reference.weights
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """Remove the images' location from a checkpoint's configuration; the fingerprint identifies them."""
    return config | {"data": {key: value for key, value in config["data"].items() if key != "data_root"}}
