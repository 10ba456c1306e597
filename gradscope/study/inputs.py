"""What a stage reads: the checkpoints that a command names, and the images they are examined on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, Splits
from gradscope.errors import GradscopeError
from gradscope.models.inspection import FLOAT32
from gradscope.models.subject import Foreign, Reference, Subject, load_subject, read_references
from gradscope.results.manifest import provenance
from gradscope.seeding import generator
from gradscope.sharing import Team

#: Images where a command that attacks them one by one does not say.
DEFAULT_SAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every measuring stage is told.

    ``data`` is what the command says of the data set; the rest is as the checkpoint has it. ``devices``: processes, one
    a device, that share the work, to the same results; where ``torchrun`` has started some, those. ``figures``:
    whether they are drawn.
    """

    seed: int = 0
    device: str = "auto"
    devices: int = 1
    data: Mapping[str, Any] = field(default_factory=dict)
    download: bool = False
    overwrite: bool = False
    figures: bool = True


@dataclass(frozen=True)
class Chosen:
    """The images that are examined and their indices in the test set."""

    images: ImageSet
    numbers: torch.Tensor
    available: int


@dataclass(frozen=True)
class Viewed:
    """A checkpoint to be viewed: what the command calls it and the model, on its device."""

    reference: Reference
    subject: Subject


def resolve_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise GradscopeError(f"--device: auto, cpu or cuda is allowed, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise GradscopeError("--device: cuda was asked for, but torch sees no CUDA device here; use auto or cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The device's product name where it has one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def made_by(team: Team) -> dict[str, Any]:
    """How a result is made, as the manifest says it: versions, machine, and how many processes share the work."""
    return provenance(device_name(team.device)) | {"processes": team.size, "float32": FLOAT32}


def arithmetic(team: Team) -> dict[str, str]:
    """What the last digits of a measurement depend on beside its settings: partial results of others do not fit."""
    return {"device": team.device.type, "float32": FLOAT32, "torch": torch.__version__}


def draw_figures(out: Path, request: Request) -> None:
    """Draw the figures of the tables in ``out`` where the request wants them; else import nothing that draws."""
    if request.figures:
        from gradscope.report import figures

        figures.draw(out)


def choose(test: ImageSet, count: int | None, default: int, seed: int, argument: str) -> Chosen:
    """``count`` test images drawn by ``seed`` without replacement, in the set's order; None: ``default`` or all."""
    available = len(test)
    count = min(default, available) if count is None else count
    if not 1 <= count <= available:
        raise GradscopeError(
            f"{argument}: 1 to {available} is allowed, {test.name} has so many test images, got {count}"
        )
    return take(test, order(test, seed)[:count].sort().values)


def take(test: ImageSet, numbers: torch.Tensor) -> Chosen:
    """The test images at ``numbers`` ``(M,)``."""
    return Chosen(test.subset(numbers), numbers, len(test))


def order(test: ImageSet, seed: int) -> torch.Tensor:
    """The order in which ``seed`` draws the test images."""
    return torch.randperm(len(test), generator=generator(seed, "images"))


def read_data(reference: Reference, request: Request, loaded: dict[Data, Splits]) -> Splits:
    """The data set the command names, or the checkpoint's own, with what the command says of where it is.

    Sets that are in ``loaded`` are not read again; what is read is put there.
    """
    own = reference.data
    if own is None and "dataset" not in request.data:
        raise GradscopeError(f"--dataset: {reference.text} is a foreign model; name the data set it is examined on")
    known = own.model_dump() if own is not None and "dataset" not in request.data else {}
    data = Data.parse(known | dict(request.data))
    try:
        if data not in loaded:
            loaded[data] = sources.load(data, download=request.download)
        return loaded[data]
    except GradscopeError as error:
        if known.get("data_root") is None or "data_root" in request.data:
            raise
        raise GradscopeError(
            f"{error} ({reference.label} was trained from there; --data-root says where now)"
        ) from None


def read_all(
    texts: Sequence[str], request: Request, foreign: Foreign, device: torch.device, purpose: str
) -> tuple[list[Viewed], Splits]:
    """Every checkpoint that is named, loaded, and the one data set that all of them are viewed on.

    ``purpose`` is what they are viewed in, for the message that refuses two data sets.
    """
    references = read_references(texts, foreign)
    loaded: dict[Data, Splits] = {}
    first, *others = [read_data(reference, request, loaded) for reference in references]
    for reference, splits in zip(references[1:], others, strict=True):
        if splits.test.fingerprint != first.test.fingerprint:
            raise GradscopeError(
                f"CKPT: one data set is allowed in a {purpose}; {references[0].label} has {first.test.name}, "
                f"{reference.label} {splits.test.name}; pass --dataset to view all on one"
            )
    return [Viewed(reference, load_subject(reference, first.test, foreign, device)) for reference in references], first


def describe(reference: Reference, images: Chosen) -> dict[str, Any]:
    """A checkpoint and its images as the manifest names them."""
    ours = reference.checkpoint
    return {
        "label": reference.label,
        "source": reference.text,
        "weights": None if reference.weights is None else str(reference.weights),
        "sha256": _digest(reference),
        "fingerprint": None if ours is None else ours.fingerprint,
        "config": None if ours is None else _published(ours.config),
        "epochs": None if ours is None else {"done": ours.epochs, "planned": ours.planned_epochs},
        "trained": None if ours is None else ours.provenance,
        "data": {
            "name": images.images.name,
            "split": "test",
            "images": len(images.images),
            "of": images.available,
            "fingerprint": images.images.fingerprint,
        },
        "seconds": {},
    }


def _digest(reference: Reference) -> str | None:
    """SHA-256 of the file the weights came from; None where a factory brought its own."""
    file = Path(reference.text) if reference.checkpoint is not None else reference.weights
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration without where its images lay: the fingerprint says which they were."""
    return config | {"data": {key: value for key, value in config["data"].items() if key != "data_root"}}
