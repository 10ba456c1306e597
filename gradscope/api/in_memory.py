"""A measurement of models and images in memory: what a user hands over, made ready for the runner."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.api.keywords import of_kind, require_left_out
from gradscope.api.models import TrainedModel, load
from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.given import as_image_set
from gradscope.data.image_set import ImageSet
from gradscope.data.names import DATASETS
from gradscope.distributed.processes import resolve_device
from gradscope.errors import UNPRINTABLE, GradscopeError, caution, described
from gradscope.measure.inputs import Given
from gradscope.measure.options import AuditOptions, Request
from gradscope.measure.options.common import Circumstances, ForeignOptions, Options
from gradscope.measure.result import Result, read
from gradscope.measure.runner import run
from gradscope.models.failures import explained_failures
from gradscope.models.given import given_model, no_module
from gradscope.models.inspection import device_of
from gradscope.models.references import check_references, weights_in_order
from gradscope.options import DataOptions
from gradscope.progress import shown
from gradscope.results.cautions import blind_attacks
from gradscope.results.manifest import MANIFEST, read_manifest

#: A model: a module, or the text of a checkpoint or foreign model as a command takes it.
Model = nn.Module | str | Path
#: One model, or several by name.
Models = Model | Mapping[str, Model]


def measure(kind: type[Options], model: Models, x: Any, y: Any, given: Mapping[str, Any]) -> Result:
    """Run a measurement as its command does, in a directory that is read back and removed."""
    values = dict(given)
    progress = values.pop("progress", None)
    models = _named(model)
    if x is not None:
        require_left_out(DataOptions, values, "x is given")
    named = models | _others(kind, values, models) if x is not None or _in_memory(models) else models
    device = values.get("device", "auto")
    device = str(device) if isinstance(device, torch.device) else device
    request = Request(
        options=kind.parse(of_kind(kind, values)),
        models=tuple(models),
        data=DataOptions.parse(of_kind(DataOptions, values)),
        foreign=ForeignOptions.parse(of_kind(ForeignOptions, values)),
        where=Circumstances.parse({"device": device, "no_figures": True}),
    )
    modules = _in_memory(named)
    if modules and "device" in values:
        raise GradscopeError("device must be left out where a model is in memory: call model.to(...)")
    if len(modules) == len(named) and request.foreign.weights:
        raise GradscopeError("weights must be left out where models are in memory: call model.load_state_dict(...)")
    labels = {id(model): name for name, model in named.items() if isinstance(model, nn.Module)}
    explained = explained_failures(lambda value: labels.get(id(value)))
    with tempfile.TemporaryDirectory() as folder, shown(progress), explained:
        out = Path(folder) / "results"
        if x is None and not modules:
            texts = tuple(str(text) for text in models.values())
            run(request.model_copy(update={"models": texts}), out, warn=caution)
        else:
            request.check()
            images = _test_images(request.data, modules) if x is None else as_image_set(x, y)
            run(request, out, _given(named, images, request, everything=x is not None), warn=caution)
        if kind is not AuditOptions:  # whose verdict says more
            for sentence in blind_attacks(read_manifest(out / MANIFEST)[0]):
                caution(sentence)
        return read(out)


def _test_images(data: DataOptions, modules: Sequence[nn.Module]) -> ImageSet:
    """The test images of ``dataset``, or of the data set by name that one of our models was trained on."""
    given = data.given()
    if "dataset" not in given:
        trained = [model.checkpoint.config["data"] for model in modules if isinstance(model, TrainedModel)]
        known = [own for own in trained if own["dataset"] in DATASETS]
        if not known:
            raise GradscopeError("x must be given where a model is in memory, or `dataset`; got None")
        given = known[0] | given
    return sources.load(Data.parse(given), download=data.download).test


def _in_memory(models: Mapping[str, Model]) -> list[nn.Module]:
    return [model for model in models.values() if isinstance(model, nn.Module)]


def _named(model: Models) -> dict[str, Model]:
    """The models by name."""
    if isinstance(model, Mapping):
        if not model:
            raise GradscopeError("model must be one model or several by name, got none")
        named = {str(name): one for name, one in model.items()}
        for name in named:
            if UNPRINTABLE.search(name) or not 0 < len(name) <= 255:
                raise GradscopeError(f"model must have names of 1 to 255 characters in one line, got {described(name)}")
    elif isinstance(model, TrainedModel):
        named = {model.checkpoint.mode: model}
    elif isinstance(model, str | Path):
        named = {Path(model).stem if str(model).endswith(".pt") else str(model): model}
    else:
        named = {type(model).__name__: model}
    for one in named.values():
        if not isinstance(one, nn.Module | str | Path):
            raise no_module(one)
    return named


def _others(kind: type[Options], values: dict[str, Any], models: Mapping[str, Model]) -> dict[str, Model]:
    """Models in other roles by name, such as surrogates, whose names take their place in ``values``.

    A text may be the name of one of ``models``.
    """
    found: dict[str, Model] = {}
    for role in kind.roles:
        value = values.get(role)
        if value is None or role == "epochs":
            continue
        if isinstance(value, nn.Module):
            value = {role: value}
        elif not isinstance(value, str | Path | Mapping | Sequence):
            raise GradscopeError(f"{role} must be a model, a path, or several by name, got {type(value).__name__}")
        elif not isinstance(value, Mapping):
            texts = [value] if isinstance(value, str | Path) else value
            wrong = next((text for text in texts if not isinstance(text, str | Path)), None)
            if wrong is not None:
                raise GradscopeError(f"{role} must be paths where it is a list, got {type(wrong).__name__} in it")
            value = {str(text): text for text in texts}
        found |= {str(name): one for name, one in value.items() if name not in models}
        values[role] = tuple(map(str, value))
    return found


def _given(models: Mapping[str, Model], images: ImageSet, request: Request, *, everything: bool) -> Given:
    """Every model made ready, one that is named loaded first."""
    foreign, ready = request.foreign, {}
    modules = _in_memory(models)
    device = device_of(modules[0]) if modules else resolve_device(request.where.device)
    loaded = _loaded([str(model) for model in models.values() if not isinstance(model, nn.Module)], images, foreign)
    for name, model in models.items():
        here = isinstance(model, nn.Module)
        module = model if isinstance(model, nn.Module) else next(loaded).to(device)
        normalisation = {"mean": foreign.mean, "std": foreign.std} if here else {}
        ours = module.checkpoint if isinstance(module, TrainedModel) else None
        if ours is not None and (foreign.mean is not None or foreign.std is not None):
            raise GradscopeError(f"mean must be left out, and `std`, for {name}: gradscope trained it, it has its own")
        network = module.network if isinstance(module, TrainedModel) else module
        subject, images = given_model(network, images, **normalisation, label=name)
        if ours is not None:
            spec, seed = ours.spec, ours.config.get("seed")
            subject = replace(subject, mode=ours.mode, architecture=spec.architecture, seed=seed)
        ready[name] = subject
    return Given(ready, images, everything)


def _loaded(texts: Sequence[str], images: ImageSet, foreign: ForeignOptions) -> Iterator[nn.Module]:
    """The models that are named, one after the other."""
    references = check_references(texts, weights=foreign.weights, trust_code=foreign.trust_code)
    for reference, weights in zip(references, weights_in_order(references, foreign.weights), strict=True):
        yield load(
            reference.text,
            weights=weights,
            mean=foreign.mean if reference.is_foreign else None,
            std=foreign.std if reference.is_foreign else None,
            channels=images.channels,
            size=(images.height, images.width),
            trust_code=foreign.trust_code,
        )
