"""What a user hands over becomes an image set of exactly these pixels; what cannot gets one sentence."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from gradscope.data.given import as_image_set, with_classes
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError

X = torch.from_numpy(load_digits().images[:30] / 16).float()[:, None, :, :6].contiguous()
Y = torch.from_numpy(load_digits().target[:30])
BYTES = (X * 255).byte()


class Digits(Dataset[tuple[Any, int]]):
    """A data set as torchvision has them: images through a transform, integer labels, ``.classes``."""

    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def __init__(self, kind: str = "tensor") -> None:
        self.kind = kind

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.kind == "pil":
            return Image.fromarray(BYTES[index, 0].numpy()), int(Y[index])
        if self.kind == "rgb":
            return Image.fromarray(BYTES[index, 0].numpy()).convert("RGB"), int(Y[index])
        return (X[index].numpy() if self.kind == "array" else X[index]), int(Y[index])


def same(found: ImageSet, x: Tensor, y: Tensor = Y) -> bool:
    return found.images.dtype == x.dtype and torch.equal(found.images, x) and torch.equal(found.labels, y)


@pytest.mark.parametrize(
    "x", [X, X.numpy(), X.double(), X.numpy().astype(">f8"), X.clone().requires_grad_(), X.numpy()[::-1][::-1]]
)
@pytest.mark.parametrize("y", [Y, Y.int(), Y.numpy().astype(np.uint16), Y.tolist(), tuple(Y.tolist())])
def test_tensors_and_arrays(x: Any, y: Any) -> None:
    found = as_image_set(x, y)
    assert same(found, X)
    assert not found.images.requires_grad
    assert found.classes == tuple("0123456789")
    assert (found.height, found.width) == (8, 6)
    assert same(as_image_set((x, y)), X)


def test_bytes_stay_bytes() -> None:
    assert same(as_image_set(BYTES.numpy(), Y), BYTES)
    frozen = BYTES.numpy().copy()
    frozen.flags.writeable = False
    assert same(as_image_set(frozen[::-1], Y.flip(0)), BYTES.flip(0), Y.flip(0))


def test_a_half_precision_image_is_not_changed() -> None:
    assert torch.equal(as_image_set(X.half(), Y).images, X.half().float())


def test_an_image_set_is_itself() -> None:
    found = as_image_set(X, Y)
    assert as_image_set(found) is found
    with pytest.raises(GradscopeError, match="y must be left out if x is an ImageSet"):
        as_image_set(found, Y)


def test_labels_are_given_once() -> None:
    with pytest.raises(
        GradscopeError, match=r"^y must be left out if x is a DataLoader, whose batches hold the labels$"
    ):
        as_image_set(DataLoader(TensorDataset(X, Y)), Y)
    with pytest.raises(GradscopeError, match=r"^y must be left out if x is a data set, whose items hold the labels$"):
        as_image_set(TensorDataset(X, Y), Y)


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_data_set_with_names(kind: str) -> None:
    found = as_image_set(Digits(kind))
    assert same(found, X)
    assert found.classes == Digits.classes
    part = as_image_set(Subset(Digits(kind), [3, 1]))
    assert same(part, X[[3, 1]], Y[[3, 1]])
    assert part.classes == Digits.classes
    assert as_image_set(Digits(kind), classes="abcdefghij").classes == tuple("abcdefghij")


def test_pil_images_become_grey_or_rgb() -> None:
    assert same(as_image_set(Digits("pil")), BYTES)
    assert same(as_image_set(Digits("rgb")), BYTES.expand(-1, 3, -1, -1))


def test_a_list_of_pairs_is_a_data_set() -> None:
    assert same(as_image_set([(X[0], 3), (X[1], np.int64(4))]), X[:2], torch.tensor([3, 4]))


@pytest.mark.parametrize("batch_size", [7, 30, 100])
def test_a_loader_gives_every_batch_in_its_order(batch_size: int) -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1)).tolist()
    loader = DataLoader(Digits(), batch_size=batch_size, sampler=order)
    found = as_image_set(loader)
    assert same(found, X[order], Y[order])
    assert found.classes == Digits.classes
    plain = as_image_set(DataLoader(TensorDataset(BYTES, Y.short()), batch_size=batch_size))
    assert same(plain, BYTES)
    assert plain.classes == tuple("0123456789")


def test_numbered_classes_grow_to_the_models() -> None:
    found = as_image_set(X[:3], Y[:3])
    assert found.classes == ("0", "1", "2")
    grown = with_classes(found, 10)
    assert grown.classes == tuple("0123456789")
    assert grown.fingerprint == as_image_set(X[:3], Y[:3], classes="0123456789").fingerprint
    assert with_classes(grown, 10) is grown
    with pytest.raises(GradscopeError, match=r"y must be labels from 0 to 1 \(2 classes of the model\), got 2"):
        with_classes(found, 2)
    with pytest.raises(GradscopeError, match="classes must be the model's 12, got 10 names"):
        with_classes(as_image_set(Digits()), 12)


NOT_A_NUMBER = X.clone()
NOT_A_NUMBER[4, 0, 2, 2] = torch.nan


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, "x must be in [0, 1], got 0 to 255; divide by 255 or pass uint8"),
        ((X - 0.13) / 0.3, Y, "x must be in [0, 1], got -0.4333333 to 2.9; normalisation belongs in mean= "),
        (X * 1.001, Y, "x must be in [0, 1], got 0 to 1.001; clamp to [0, 1]"),
        (NOT_A_NUMBER, Y, "x must be finite, got NaN or infinity in 1 of 30 images, first in 4"),
        (X / 0, Y, "x must be finite, got NaN or infinity in 30 of 30"),
        (X[:0], Y[:0], "x must hold at least one image, got the shape (0, 1, 8, 6)"),
        (X[0], Y, "x must have the shape (N, C, H, W), got (1, 8, 6); one image is x[None]"),
        (X[:, 0], Y, f"x must have the shape (N, C, H, W), got ({len(X)}, 8, 6); grey images are x[:, None]"),
        (X[:, 0].flatten(1), Y, "x must have the shape (N, C, H, W), got (30, 48)"),
        (BYTES.movedim(1, 3), Y, "got (30, 8, 6, 1), which looks like (N, H, W, C); move the channels, as torch.moved"),
        (BYTES.long(), Y, "x must be float in [0, 1] or uint8, got int64"),
        (BYTES.bool(), Y, "x must be float in [0, 1] or uint8, got bool"),
        (X, Y[:7], "y must have a label for each image of x (30), got 7"),
        (X, Y - 1, "y must be labels of at least 0, got -1"),
        (X, Y.float(), "y must be integers, got float32; pass y.long()"),
        (X, Y.double().numpy(), "y must be integers, got float64; pass y.astype(int)"),
        (X, Y > 3, "y must be integers, got bool; pass y.long()"),
        (X, torch.eye(10)[Y], "y must be labels (N,), got the shape (30, 10); pass y.argmax(1) if it is one-hot"),
        (X, Y[:, None], "y must be labels (N,), got the shape (30, 1); pass y[:, 0]"),
        (np.ma.masked_less(X.numpy(), 0.5), Y, "x must be a tensor or an array of numbers, got MaskedArray"),
        (X, ["one"] * 30, "y must be integers (N,), got list"),
        (X, None, "y must be given if x is a tensor or an array, got None"),
        ("x.npy", None, "x must be a tensor, an array, a DataLoader, a data set or an ImageSet, got str"),
        ("x.npy", Y, "x must be a tensor or an array of numbers, got str"),
        (None, None, "got NoneType"),
        ([], None, "x must hold at least one image, got none"),
        ([1, 2, 3], None, "an item of x must be a pair of images and labels, got int"),
        ([(X[0], 0.5)], None, "an item of x must end with a whole number as label, got 0.5"),
        ([(X[0], torch.tensor(0.5))], None, "a whole number as label, got tensor(0.5000)"),
        ((X[0], 1), None, "x must have the shape (N, C, H, W), got (1, 8, 6); one image is x[None]"),
        ([(X[0, 0], 1)], None, "an item of x must begin with an image (C, H, W), got the shape (8, 6)"),
        ([("a.png", 1)], None, "an item of x must begin with an image (C, H, W), got str"),
        ([(X[0], 1), (X[0, :, :3], 1)], None, "x must have images of one size and type, got (1, "),
        (DataLoader(TensorDataset(X), batch_size=8), None, "a batch of x must be a pair of images and labels"),
        (DataLoader([{"x": 1}]), None, "a batch of x must be a pair of images and labels, got dict"),
        (DataLoader(TensorDataset(X, Y.float())), None, "y must be integers, got float32"),
    ],
)
def test_a_mistake_gets_one_sentence(x: Any, y: Any, message: str) -> None:
    with pytest.raises(GradscopeError) as raised:
        as_image_set(x, y)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(GradscopeError, match=r"y must be labels from 0 to 2 \(3 classes\), got 9"):
        as_image_set(X, Y, classes=["a", "b", "c"])


class _Faulty(Dataset[Any]):
    """A data set of three items, whose third is not there."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return [(X[0], 0), (X[1], 1)][index]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (_Faulty(), None, "x cannot be read: IndexError: list index out of range"),
        (DataLoader(_Faulty(), batch_size=2), None, "x cannot be read: IndexError: "),
        (DataLoader(TensorDataset(X, Y), batch_size=None), None, "x cannot be read: TypeError: len() of a 0-d tensor"),
        (X.to("meta"), Y, "x cannot be read: RuntimeError: "),
    ],
)
def test_what_goes_wrong_in_the_users_code_is_told(x: Any, y: Any, message: str) -> None:
    with pytest.raises(GradscopeError) as raised:
        as_image_set(x, y)
    assert str(raised.value).startswith(message)


def test_a_name_is_one_line() -> None:
    with pytest.raises(GradscopeError, match="name must be one line of at most 255 characters"):
        ImageSet.from_tensors("a\ud800", X, Y)
