"""Load foreign models and their weights: ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory``."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gradscope import vision
from gradscope.errors import GradscopeError
from gradscope.models.architectures import check_normalisation, normalised
from gradscope.models.checkpoint import is_whole, load_strictly, load_weights_only, require_checksums
from gradscope.models.factories import built, call_factory
from gradscope.models.inspection import into_evaluation, one_line
from gradscope.models.references import (
    PICKLE_HEAD,
    ModelRef,
    check_reference,
    first_bytes,
    require_both,
    require_safetensors,
)
from gradscope.seeding import seeded

#: The number of classes of a library's model if neither data nor weights give one.
USUAL_CLASSES = 1000
#: The keys under which training scripts store the state dict, in the order in which they are tried.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "ema", "state_dict_ema", "last", "network")
#: The prefixes that DataParallel, torch.compile and wrapping modules add to every key.
PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.")
_NORMALISATION = ("normalise.mean", "normalise.std")


def load_foreign(
    reference: ModelRef,
    *,
    weights: Path | None,
    classes: int | None,
    channels: int,
    size: tuple[int, int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    trust_code: bool,
) -> nn.Module:
    """Load the model that ``reference`` names, with ``weights``, in eval mode; it takes images in [0, 1].

    ``classes`` None: the number of classes of ``weights``, or 1000. ``size``: height and width of the images, for
    models that are built for one size. If ``mean`` and ``std`` are given, or ``weights`` is a gradscope checkpoint,
    which contains its own, the model is put behind :class:`Normalise`. A factory runs code, which needs ``trust_code``;
    it may bring its own weights. Random states do not change. Raises :class:`GradscopeError` for every mistake.
    """
    require_both(mean, std)
    if mean is not None and std is not None:
        check_normalisation(mean, std, channels)
    check_reference(reference, weights, trust_code=trust_code)
    state = None if weights is None else _read_state_dict(weights)

    def build(count: int) -> nn.Module:
        with seeded(0, "foreign"):
            if reference.kind == "library":
                return _BUILDERS[reference.module](reference.name, count, channels, size)
            return built(reference.text, "model", lambda: call_factory(reference.text, "model"))

    model = build(classes or USUAL_CLASSES)
    if state is not None:
        own_keys = model.state_dict().keys()
        state, file_normalisation = _split_normalisation(state, own_keys)
        mean, std = _agree(file_normalisation, mean, std)
        state = _without_prefix(state, own_keys)
        if theirs := _other_classes(model, state, classes or USUAL_CLASSES):
            if classes is not None:
                raise GradscopeError(
                    f"weights: {weights} must have the data's {classes} classes, got {theirs}; measure it on data of "
                    "its classes, or give it another last layer in a package.module:factory"
                )
            model = build(theirs)
        load_strictly(model, state, f"weights: {weights} does not fit {reference.text}")
    if mean is not None and std is not None:
        model = normalised(model, mean, std)
    return into_evaluation(model)


def _from_torchvision(name: str, classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    """Build a model of torchvision; its number of channels is always 3."""
    known = vision.torchvision.models.list_models(module=vision.torchvision.models)
    if name not in known:
        raise _unknown_model("torchvision", name, known, "torchvision.models.list_models()")
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise GradscopeError(f"model: images must be square for torchvision:{name}, got {size[0]} x {size[1]}")
        options["image_size"] = size[0]
    with warnings.catch_warnings():
        # GoogLeNet and Inception warn of another initialisation; the weights overwrite all of it.
        warnings.simplefilter("ignore", FutureWarning)
        return built(f"torchvision:{name}", "model", lambda: vision.torchvision.models.get_model(name, **options))


def _from_timm(name: str, classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise GradscopeError(f"model: timm:{name} needs timm; install it with: pip install 'gradscope[timm]'") from None
    if not timm.is_model(name):
        raise _unknown_model("timm", name, timm.list_models(), "timm.list_models()")
    options: dict[str, Any] = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    published = timm.models.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size:
        options["img_size"] = size
    return built(f"timm:{name}", "model", lambda: timm.create_model(name, **options))


#: The function that builds a model of each library from name, classes, channels, and (height, width).
_BUILDERS: dict[str, Callable[[str, int, int, tuple[int, int]], nn.Module]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}


def _unknown_model(library: str, name: str, known: list[str], listing: str) -> GradscopeError:
    """Make the error for an unknown name, without the list of a thousand names."""
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return GradscopeError(f"model: {library} has no model {name!r}; {hint}{listing} lists all {len(known)}")


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the state dict from a file of ``torch.save`` or safetensors, bare or wrapped.

    Checksums of ``torch.save`` are verified; safetensors, and files of torch before 1.6, have none.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = load_weights_only(path, "weights")
    if not first_bytes(path, "weights").startswith(PICKLE_HEAD):
        require_checksums(path, "weights")
    state = _unwrap(content, depth=3)
    if state is None:
        kind = f"the keys {', '.join(map(str, content))[:80]}" if isinstance(content, Mapping) else type(content)
        raise GradscopeError(f"weights: {path} must hold a state dict, bare or under {', '.join(WRAPPERS)}; got {kind}")
    if not all(map(is_whole, state.values())):
        raise GradscopeError(f"weights: {path} must hold dense tensors with all their numbers, got others")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    require_safetensors(path, "weights")
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise GradscopeError(f"weights: {path} must be a whole safetensors file: {one_line(error)}") from None


def _unwrap(content: object, depth: int) -> dict[str, Tensor] | None:
    """Find the first state dict under the wrapper keys, at most ``depth`` deep, because a pickle may contain itself."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        return dict(content)
    inner = (_unwrap(content.get(key), depth - 1) for key in WRAPPERS) if depth > 0 else iter(())
    return next((state for state in inner if state is not None), None)


def _without_prefix(state: dict[str, Tensor], own_keys: Collection[str]) -> dict[str, Tensor]:
    """Remove prefixes that all keys of ``state`` share, as many as bring the keys closest to the model's."""
    candidates = [state]
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        candidates.append(state)
    return min(reversed(candidates), key=lambda candidate: len(candidate.keys() ^ set(own_keys)))


def _other_classes(model: nn.Module, state: Mapping[str, Tensor], classes: int) -> int | None:
    """Return the number of classes of the weights if they differ from the model in nothing else; else None."""
    own = model.state_dict()
    if not all(key.endswith("num_batches_tracked") for key in own.keys() ^ state.keys()):
        return None
    reshaped = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    counts = {len(state[key]) if state[key].dim() else 0 for key in reshaped}
    only_classes = len(counts) == 1 and all(own[key].shape == (classes, *state[key].shape[1:]) for key in reshaped)
    return counts.pop() if only_classes else None


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def _split_normalisation(
    state: dict[str, Tensor], own_keys: Collection[str]
) -> tuple[dict[str, Tensor], Normalisation | None]:
    """Split ``normalise`` off a gradscope checkpoint's weights, unless the model has one itself."""
    if any(key not in state or key in own_keys for key in _NORMALISATION):
        return state, None
    mean, std = (tuple(state[key].flatten().tolist()) for key in _NORMALISATION)
    return {key: value for key, value in state.items() if key not in _NORMALISATION}, (mean, std)


def _agree(
    of_file: Normalisation | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Choose the file's normalisation or the user's; raises :class:`GradscopeError` if both differ in float32."""
    if of_file is None:
        return mean, std
    if mean is not None and std is not None:
        given = tuple(tuple(torch.tensor(values, dtype=torch.float32).tolist()) for values in (mean, std))
        if given != of_file:
            raise GradscopeError(
                f"mean and std must be those of the weights, {of_file[0]} and {of_file[1]}, got {mean} and {std}; "
                "leave both out",
                "mean",
            )
    return of_file
