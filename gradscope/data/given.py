"""Take images from a user's memory: tensors, arrays, a DataLoader, a data set."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradscope.data.image_set import INTEGERS, ImageSet, numbered, require_unit_range
from gradscope.errors import GradscopeError, reason_of

#: The default name of images in memory.
UNNAMED = "your-data"


def as_image_set(x: Any, y: Any = None, *, classes: Sequence[str] | None = None, name: str = UNNAMED) -> ImageSet:
    """Make an image set from images and labels in memory, on the device where they are.

    ``x`` is float ``(N, C, H, W)`` in [0, 1], kept as float32, or uint8, and ``y`` integers ``(N,)``: tensors, arrays
    or lists. ``x`` alone may be the pair ``(x, y)``; a DataLoader of such pairs, whose batches are joined in its order;
    a data set whose items are pairs of an image (tensor, array or PIL) and a label; or an :class:`ImageSet`, which is
    returned unchanged. Without ``classes`` the names come from the data set (``.classes``) or are the numbers from "0"
    to the largest label. Raises :class:`GradscopeError` for every mistake.

    >>> images = as_image_set(torch.zeros(2, 1, 4, 6), [0, 1])
    >>> len(images), images.height, images.width, images.classes
    (2, 4, 6, ('0', '1'))
    """
    if isinstance(x, ImageSet):
        if y is not None:
            raise GradscopeError("y must be left out if x is an ImageSet, which holds its own labels")
        return x
    if y is not None and isinstance(x, DataLoader | Dataset):
        kind = "a DataLoader, whose batches" if isinstance(x, DataLoader) else "a data set, whose items"
        raise GradscopeError(f"y must be left out if x is {kind} hold the labels")
    with _reading("x"):
        if y is None:
            x, y, named = _pair(x)
            classes = named if classes is None else classes
        images = _images(x)
        if classes is not None:
            classes = tuple(str(label) for label in classes)
    with _reading("y"):
        labels = _labels(y, len(images))
    if classes is not None:
        _require_below(labels, len(classes), "classes")
    return ImageSet.from_tensors(name, images, labels, classes)


@contextmanager
def _reading(argument: str) -> Iterator[None]:
    """Turn an error of the user's own code behind ``argument`` into a one-line :class:`GradscopeError`."""
    try:
        yield
    except GradscopeError:
        raise
    except Exception as error:
        raise GradscopeError(f"{argument} cannot be read: {type(error).__name__}: {reason_of(error)}") from error


def with_classes(images: ImageSet, count: int) -> ImageSet:
    """Give ``images`` the ``count`` classes of a model; classes that are only numbers may be fewer than ``count``.

    Raises :class:`GradscopeError` if a label is ``count`` or more, or if named classes are of another number.
    """
    if len(images.classes) == count:
        return images
    if images.classes != numbered(len(images.classes)):
        raise GradscopeError(f"classes must be the model's {count}, got {len(images.classes)} names")
    _require_below(images.labels, count, "classes of the model")
    return ImageSet.from_tensors(images.name, images.images, images.labels, numbered(count))


def _pair(x: Any) -> tuple[Any, Any, Sequence[str] | None]:
    """Split a container of images and labels into images, labels and, if it has them, class names."""
    if isinstance(x, DataLoader):
        return *_joined(x), _class_names(x.dataset)
    if isinstance(x, tuple | list) and len(x) == 2 and isinstance(x[0], Tensor | np.ndarray):
        return x[0], x[1], None
    if isinstance(x, Tensor | np.ndarray):
        raise GradscopeError("y must be given if x is a tensor or an array, got None")
    if hasattr(x, "__getitem__") and hasattr(x, "__len__") and not isinstance(x, str | dict):
        images, labels = _unzipped((x[index] for index in range(len(x))), "an item of x")
        return _stacked([_pixels(image) for image in images]), [_number(label) for label in labels], _class_names(x)
    raise GradscopeError(
        f"x must be a tensor, an array, a DataLoader, a data set or an ImageSet, got {type(x).__name__}"
    )


def _joined(loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Join all batches of a loader, in its order."""
    images, labels = _unzipped(loader, "a batch of x")
    for batch, targets in zip(images, labels, strict=True):
        if not isinstance(batch, Tensor) or not isinstance(targets, Tensor) or len(batch) != len(targets):
            raise GradscopeError("a batch of x must be tensors (images, labels) of one length, got something else")
    if len({(part.dtype, part.shape[1:]) for part in images}) > 1:
        raise GradscopeError("x must have images of one size and type, got several; resize them in the data set")
    return torch.cat(images), torch.cat(labels)


def _unzipped(pairs: Iterable[Any], what: str) -> tuple[list[Any], list[Any]]:
    images, labels = [], []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            size = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
            raise GradscopeError(f"{what} must be a pair of images and labels, got {type(pair).__name__}{size}")
        images.append(pair[0])
        labels.append(pair[1])
    if not images:
        raise GradscopeError("x must hold at least one image, got none")
    return images, labels


def _pixels(image: Any) -> Tensor:
    """Convert one image of a data set to ``(C, H, W)``; a PIL image becomes grey or RGB."""
    if isinstance(image, Image.Image):
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())
    if isinstance(image, np.ndarray):
        image = _tensor(image)
    if not isinstance(image, Tensor) or image.dim() != 3:
        got = f"the shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise GradscopeError(f"an item of x must begin with an image (C, H, W), got {got}")
    return image


def _stacked(images: Sequence[Tensor]) -> Tensor:
    formats = {(image.dtype, image.shape) for image in images}
    if len(formats) > 1:
        (_, first), (_, second) = list(formats)[:2]
        raise GradscopeError(f"x must have images of one size and type, got {tuple(first)} and {tuple(second)}")
    return torch.stack(list(images))


def _number(label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise GradscopeError(f"an item of x must end with a whole number as label, got {label!r}") from None


def _class_names(dataset: Any) -> Sequence[str] | None:
    """Find ``.classes`` of a data set, or of the data set that it is a subset of."""
    for each in _nested(dataset):
        names = getattr(each, "classes", None)
        if isinstance(names, list | tuple) and names:
            return names
    return None


def _nested(dataset: Any) -> Iterator[Any]:
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "dataset", None)


def _tensor(values: Any) -> Tensor:
    """Convert ``values`` to a tensor; they may be read-only, strided or in another byte order."""
    if isinstance(values, Tensor):
        return values.detach()
    if np.ma.is_masked(values):
        raise ValueError("masked values are not numbers")
    array = np.asarray(values)
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(array))


def _images(x: Any) -> Tensor:
    """Convert ``x`` to uint8 or float32 ``(N, C, H, W)``."""
    try:
        images = _tensor(x)
    except (TypeError, ValueError):
        raise GradscopeError(f"x must be a tensor or an array of numbers, got {type(x).__name__}") from None
    shape, kind = tuple(images.shape), str(images.dtype).removeprefix("torch.")
    if images.dim() != 4:
        hint = ""
        if images.dim() == 3:
            hint = "; one image is x[None]" if len(images) in (1, 3) else "; grey images are x[:, None]"
        raise GradscopeError(f"x must have the shape (N, C, H, W), got {shape}{hint}")
    if 0 in shape:
        raise GradscopeError(f"x must hold at least one image, got the shape {shape}")
    if shape[3] in (1, 3) and shape[1] not in (1, 3):
        raise GradscopeError(
            f"x must have the shape (N, C, H, W), got {shape}, which looks like (N, H, W, C); "
            "move the channels, as torch.movedim(x, 3, 1) does"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise GradscopeError(f"x must be float in [0, 1] or uint8, got {kind}")
    require_unit_range(images, "x")
    return images.float()


def _labels(y: Any, count: int) -> Tensor:
    """Convert ``y`` to int64 ``(N,)``, none below 0."""
    try:
        labels = _tensor(y)
    except (TypeError, ValueError):
        raise GradscopeError(f"y must be integers (N,), got {type(y).__name__}") from None
    if labels.dim() != 1:
        hint = ""
        if labels.dim() == 2:
            hint = "; pass y[:, 0]" if labels.shape[1] == 1 else "; pass y.argmax(1) if it is one-hot"
        raise GradscopeError(f"y must be labels (N,), got the shape {tuple(labels.shape)}{hint}")
    if labels.dtype not in INTEGERS:
        whole = bool((labels.double() == labels.double().round()).all())
        hint = ("; pass y.long()" if isinstance(y, Tensor) else "; pass y.astype(int)") if whole else ""
        raise GradscopeError(f"y must be integers, got {str(labels.dtype).removeprefix('torch.')}{hint}")
    if len(labels) != count:
        raise GradscopeError(f"y must have a label for each image of x ({count}), got {len(labels)}")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise GradscopeError(f"y must be labels of at least 0, got {int(labels.min())}")
    return labels


def _require_below(labels: Tensor, count: int, what: str) -> None:
    highest = int(labels.max())
    if highest >= count:
        raise GradscopeError(f"y must be labels from 0 to {count - 1} ({count} {what}), got {highest}")
