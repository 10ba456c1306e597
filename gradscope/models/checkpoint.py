"""Write gradscope's checkpoint files atomically, and read them without running any code from them."""

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gradscope.errors import GradscopeError
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.names import is_own
from gradscope.models.references import (
    PICKLE_HEAD,
    first_bytes,
    no_checkpoint,
    no_tensors,
    require_found,
    require_tensors,
    truncated,
)
from gradscope.results.files import atomic
from gradscope.results.manifest import Provenance, first_mistake
from gradscope.seeding import seeded

#: The format's version: increase it whenever an older gradscope could misread the output of :func:`save`.
FORMAT = 1
_PRODUCER = "gradscope"
_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and its training: resolved ``config``, ``history`` with one row per epoch, ``provenance``.

    ``epochs`` is the number of epochs done when it was written, of ``planned_epochs``; ``kept_epoch`` is the epoch
    whose weights these are, None if an older version wrote the file. ``dataset`` names the training data, ``classes``
    holds its class names in the order of the logits, ``data_fingerprint`` identifies its content. ``trust_code``:
    whether a user's own architecture may run to build the network; ``path``: the file it was read from, for messages.
    These two are not saved.
    """

    spec: ModelSpec
    state_dict: dict[str, Tensor]
    mode: str
    dataset: str
    classes: tuple[str, ...]
    data_fingerprint: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    provenance: dict[str, Any]
    kept_epoch: int | None = None
    trust_code: bool = False
    path: Path | None = field(default=None, repr=False, compare=False)

    @property
    def epochs(self) -> int:
        """The number of epochs done."""
        return len(self.history)

    @property
    def planned_epochs(self) -> int:
        """The number of epochs in the configuration."""
        return sum(phase["epochs"] for phase in self.config.get("phases", ()))

    @property
    def is_complete(self) -> bool:
        """Whether all epochs of the configuration are done."""
        return self.epochs >= self.planned_epochs

    @property
    def fingerprint(self) -> str:
        """SHA-256 of network, weights, configuration and data, without time, place and speed of the training.

        Repeating a training to the same weights gives the same fingerprint, although the file differs.
        """
        config = self.config
        if isinstance(config.get("data"), dict):
            config = config | {"data": {key: value for key, value in config["data"].items() if key != "data_root"}}
        facts = [self.spec.to_dict(), self.mode, self.dataset, self.classes, self.data_fingerprint, config, self.epochs]
        return digest_of(facts, self.state_dict)

    def build(self) -> nn.Sequential:
        """Build the network with these weights, in eval mode, on the CPU; it shares no memory with the checkpoint.

        Raises :class:`GradscopeError` if the weights do not fit the specification. Random states do not change.
        """
        argument = "model" if self.path is None else f"model: {self.path}"
        complaint = f"model: the checkpoint's weights do not fit {self.spec.architecture}"
        if not is_own(self.spec.architecture):
            # On the meta device, because a damaged specification may need gigabytes.
            try:
                with torch.device("meta"), seeded(0, "weights"):
                    shapes = build(self.spec).state_dict()
            except (RuntimeError, TypeError) as error:
                raise GradscopeError(f"{complaint}: {str(error).splitlines()[0]}") from None
            require_fit(shapes, self.state_dict, complaint)
        with seeded(0, "weights"):
            model = build(self.spec, trust_code=self.trust_code, argument=argument)
        load_strictly(model, self.state_dict, complaint)
        return model.eval()


def digest_of(facts: Any, tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of ``facts`` (JSON values) and of ``tensors``: their names, types, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path`` atomically: a reader sees the old file or the new one, never a part.

    Equal checkpoints give equal bytes. Raises TypeError for a value that is neither a tensor nor a plain type.
    """
    content = {
        "producer": _PRODUCER,
        "format": FORMAT,
        "spec": checkpoint.spec.to_dict(),
        "mode": checkpoint.mode,
        "dataset": checkpoint.dataset,
        "classes": list(checkpoint.classes),
        "data_fingerprint": checkpoint.data_fingerprint,
        "config": checkpoint.config,
        "history": checkpoint.history,
        "epochs": {"done": checkpoint.epochs, "planned": checkpoint.planned_epochs, "kept": checkpoint.kept_epoch},
        "provenance": checkpoint.provenance,
    }
    _require_plain(content, "checkpoint")
    # A clone, because torch.save writes the whole storage behind a view.
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in checkpoint.state_dict.items()
    }
    save_tensors(path, content | {"state_dict": tensors})


def save_tensors(path: Path, value: object) -> None:
    """Write ``value`` with ``torch.save`` atomically; raises :class:`GradscopeError` if the disk is full or fails."""
    # An open file, because torch.save writes the name of a given path, here a random one, into the archive.
    with atomic(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            # Torch reports an unfinished archive; the context holds the error that caused it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path, *, trust_code: bool = False) -> Checkpoint:
    """Read a checkpoint that :func:`save` wrote; raises :class:`GradscopeError` for any other file.

    Without ``trust_code`` the network of a user's own architecture cannot be built.
    """
    require_found(path, "model")
    content = {} if path.suffix == ".safetensors" else load_weights_only(path, "model")
    if not isinstance(content, dict) or content.get("producer") != _PRODUCER:
        raise no_checkpoint(path)
    written = content.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise GradscopeError(f"model: {path} must be of format {FORMAT} or below, got {written}; update gradscope")
    require_checksums(path, "model")
    try:
        _require_plain({key: value for key, value in content.items() if key != "state_dict"}, "checkpoint")
        _require_kinds(content)
        return Checkpoint(
            spec=ModelSpec.from_dict(content["spec"]),
            state_dict=_tensors(content["state_dict"]),
            mode=content["mode"],
            dataset=content["dataset"],
            classes=tuple(content["classes"]),
            data_fingerprint=content["data_fingerprint"],
            config=content["config"],
            history=content["history"],
            provenance=content["provenance"],
            kept_epoch=_kept_epoch(content),
            trust_code=trust_code,
            path=path,
        )
    except GradscopeError as error:
        raise GradscopeError(f"model: {path} cannot be used: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise GradscopeError(f"model: {path} is damaged: {type(error).__name__} {error}") from None


def _kept_epoch(content: Mapping[str, Any]) -> int | None:
    epochs = content.get("epochs", {})
    require_kinds({"epochs": epochs}, {"epochs": dict})
    kept: int | None = epochs.get("kept")
    require_each("epochs", [kept], int, type(None))
    return kept


#: The types of the parts of a checkpoint that need no conversion.
_KINDS = {
    "mode": str,
    "dataset": str,
    "classes": list,
    "data_fingerprint": str,
    "config": dict,
    "history": list,
    "provenance": dict,
}


def _require_kinds(content: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError if a part of a checkpoint is missing or of another type."""
    require_kinds(content, _KINDS)
    require_each("classes", content["classes"], str)
    require_each("history", content["history"], dict)
    try:
        Provenance.model_validate(content["provenance"])
    except ValidationError as error:
        raise TypeError(f"provenance.{first_mistake(error)}") from None
    config = content["config"]
    require_kinds(config, {key: kind for key, kind in (("phases", list), ("data", dict)) if key in config})
    for phase in config.get("phases", ()):
        require_kinds(phase, {"epochs": int})


def require_kinds(values: Any, kinds: Mapping[str, type]) -> None:
    """Raise KeyError or TypeError unless ``values`` is a dict with the keys of ``kinds`` and values of these types."""
    for key, kind in kinds.items():
        if not isinstance(values, dict) or not isinstance(values[key], kind):
            raise TypeError(f"{key} must be of type {kind.__name__}")


def require_each(name: str, values: Iterable[Any], *kinds: type) -> None:
    """Raise TypeError unless each of ``values``, which belong to ``name``, is of one of ``kinds``."""
    if not all(isinstance(value, kinds) for value in values):
        raise TypeError(f"each of {name} must be of type {' or '.join(kind.__name__ for kind in kinds)}")


def _tensors(state: object) -> dict[str, Tensor]:
    if not are_whole(state):
        raise TypeError("state_dict must hold named dense tensors, got something else")
    return dict(state)


def are_whole(values: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether ``values`` is a dict of named tensors, each :func:`is_whole`."""
    return isinstance(values, dict) and all(isinstance(name, str) and is_whole(values[name]) for name in values)


def is_whole(value: object) -> bool:
    """Whether ``value`` is a dense tensor with all its numbers in memory, not one number expanded to gigabytes."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.nbytes <= value.untyped_storage().nbytes()


def require_checksums(path: Path, argument: str) -> None:
    """Verify the checksums of a file of ``torch.save``; raises :class:`GradscopeError` that begins with ``argument``.

    Torch ignores a wrong checksum, so that a flipped bit in a weight would be measured as if it were trained.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception:  # a bad structure, an undecodable name, an unknown compression, an encrypted member
        damaged = "the archive"
    if damaged is not None:
        raise GradscopeError(f"{argument}: {path} is damaged: the checksum of {damaged} is wrong")


def load_weights_only(path: Path, argument: str) -> Any:
    """Read tensors and plain types that ``torch.save`` wrote to ``path``, on the CPU, without running code from it.

    Raises :class:`GradscopeError` that begins with ``argument`` if the file needs code, is truncated or is not torch's.
    No option changes this.
    """
    require_tensors(path, argument)
    try:
        with warnings.catch_warnings():
            # Torch warns of newer pickles; the error that follows is clearer.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Torch's message suggests weights_only=False, so it is not passed on.
        raise _refusal(path, argument, error) from None


def _refusal(path: Path, argument: str, error: Exception) -> GradscopeError:
    """Explain why ``torch.load`` failed, from the file's first bytes and torch's error."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and refused:
        return GradscopeError(
            f"{argument}: {path} was refused: it needs the code of {refused[1]}, and gradscope never runs code from a "
            "checkpoint; save only the model's state_dict()"
        )
    cut = isinstance(error, EOFError | struct.error | IndexError) or "unexpected EOF" in str(error)
    if cut and first_bytes(path, argument).startswith(PICKLE_HEAD):
        return truncated(path, argument)
    return no_tensors(path, argument)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], complaint: str) -> None:
    """Copy ``state`` into ``model``, in place; every entry must be there and have the model's shape.

    Raises :class:`GradscopeError` otherwise: ``complaint``, then the numbers of missing, unexpected and reshaped
    entries, with the first of each. Only batch norm's counter of batches may be missing: files from before torch 0.4.1
    lack it, and no forward pass in eval mode reads it.
    """
    own = model.state_dict()
    counters = {key: own[key] for key in own.keys() - state.keys() if key.endswith("num_batches_tracked")}
    state = {**state, **counters}
    require_fit(own, state, complaint)
    model.load_state_dict(state)


def require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], complaint: str) -> None:
    """Raise :class:`GradscopeError` unless ``state`` has exactly the entries of ``own``, each with the same shape."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key}: file {tuple(state[key].shape)}, model {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of other shape", reshaped))
    differences = [f"{len(keys)} {kind} (first {keys[0]})" for kind, keys in problems if keys]
    if differences:
        raise GradscopeError(f"{complaint}: {', '.join(differences)}")


def _require_plain(value: object, place: str) -> None:
    """Raise TypeError at the first value inside ``value`` that ``weights_only`` would refuse to load."""
    # The exact type: numpy.float64 is a float, but is pickled as a call to numpy.
    if type(value) is dict:
        for key, item in value.items():
            _require_plain(key, f"a key of {place}")
            _require_plain(item, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):  # type: ignore[arg-type]  # type() does not narrow
            _require_plain(item, f"{place}[{index}]")
    elif type(value) not in _PLAIN:
        raise TypeError(f"{place} must be None, bool, int, float, str, list, tuple or dict, got {type(value)}")
