"""CIFAR and Tiny-ImageNet from image folders, ``.npz`` files and their published files: the same images and labels."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gradscope.config import Data
from gradscope.data.image_set import Splits
from gradscope.data.published import CIFAR10
from gradscope.data.sources import load
from gradscope.errors import GradscopeError
from gradscope.vision import torchvision

Unpack = Callable[..., Path]
MakeTree = Callable[..., Path]

NAMES = CIFAR10.classes
assert NAMES is not None


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))


def read(name: str, root: Path) -> Splits:
    return load(Data(dataset=name, data_root=root))


def same(splits: Splits, others: Splits) -> bool:
    return all(
        (one.name, one.classes, one.fingerprint) == (other.name, other.classes, other.fingerprint)
        for one, other in ((splits.train, others.train), (splits.test, others.test))
    )


def arrays_of(splits: Splits, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """What an ``.npz`` holds, with labels that number ``classes`` (in any order)."""
    classes = splits.train.classes if classes is None else classes
    arrays: dict[str, Any] = {"classes": np.array(classes)}
    for split, images in (("train", splits.train), ("test", splits.test)):
        arrays[f"X_{split}"] = images.images.permute(0, 2, 3, 1).numpy()
        arrays[f"y_{split}"] = np.array([classes.index(images.classes[label]) for label in images.labels])
    return arrays


def saved(path: Path, arrays: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def cifar_tree(make_tree: MakeTree, name: str = "tree") -> Path:
    return make_tree({"train": NAMES, "test": NAMES}, count=2, side=32, name=name)


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_cifar_is_found_as_a_folder(make_tree: MakeTree, tmp_path: Path, place: str) -> None:
    root = cifar_tree(make_tree, name=f"data/{place}")
    splits = read("cifar10", tmp_path / "data")
    reference = torchvision.datasets.ImageFolder(root / "test")
    expected = np.stack([np.asarray(image) for image, _ in reference]).transpose(0, 3, 1, 2)
    assert np.array_equal(splits.test.images.numpy(), expected)
    assert splits.test.labels.tolist() == reference.targets
    assert (splits.train.name, splits.train.classes) == ("cifar10", NAMES)


@pytest.mark.parametrize(("file", "given"), [("c.npz", "c.npz"), ("cifar10.npz", ".")], ids=["file", "folder"])
def test_cifar_is_found_as_an_npz(make_tree: MakeTree, tmp_path: Path, file: str, given: str) -> None:
    splits = read("cifar10", cifar_tree(make_tree))
    saved(tmp_path / "data" / file, arrays_of(splits))
    assert same(read("cifar10", tmp_path / "data" / given), splits)


def test_labels_do_not_depend_on_the_order_of_names(make_tree: MakeTree, tmp_path: Path) -> None:
    splits = read("cifar10", cifar_tree(make_tree))
    arrays = arrays_of(splits, classes=NAMES[::-1])
    assert arrays["y_test"][0] == 9
    backwards = {key: array if key == "classes" else array[::-1] for key, array in arrays.items()}
    for path in (saved(tmp_path / "a.npz", arrays), saved(tmp_path / "b.npz", backwards)):
        images = read("cifar10", path).test
        assert (images.classes, images.labels.tolist()) == (NAMES, splits.test.labels.tolist())
    assert same(read("cifar10", tmp_path / "a.npz"), splits)
    assert torch.equal(images.images.view(10, 2, -1).flip(1).reshape(splits.test.images.shape), splits.test.images)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("renamed", r"the folders in .*train must be the 10 classes of cifar10, got 10; missing: cat; unknown: kitten"),
        ("missing", r"the folders in .*test must be the 10 classes of cifar10, got 9; missing: cat$"),
        ("more", r"the folders in .*train must be the 10 classes of cifar10, got 11; unknown: kitten$"),
        ("size", r"cat/0\.png must be 32x32 pixels, got 32x40"),
        ("grey", r"images of cifar10 must be \(3, 32, 32\), got \(1, 32, 32\)"),
        ("no test", r"must hold test/ or val/, got train"),
    ],
)
def test_a_folder_that_is_not_cifar_is_refused(make_tree: MakeTree, damage: str, message: str) -> None:
    root = make_tree({"train": NAMES, "test": NAMES}, 1, 32, mode="L" if damage == "grey" else "RGB")
    cat = root / "train" / "cat"
    if damage == "renamed":
        cat.rename(cat.with_name("kitten"))
    elif damage == "missing":
        shutil.rmtree(root / "test" / "cat")
    elif damage == "more":
        shutil.copytree(cat, cat.with_name("kitten"))
    elif damage == "size":
        Image.new("RGB", (32, 40)).save(cat / "0.png")
    elif damage == "no test":
        shutil.rmtree(root / "test")
    with pytest.raises(GradscopeError, match=f"^data_root: .*{message}") as raised:
        read("cifar10", root)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, r"c\.npz must hold class names in an array classes, got X_train, "),
        (
            {"classes": np.array(["kitten", *NAMES[1:]])},
            r"the array classes in .*; missing: airplane; unknown: kitten$",
        ),
        ({"classes": np.array([*NAMES, NAMES[0]])}, r"must be the 10 classes of cifar10, got 11$"),
        ({"X_train": np.zeros((1, 28, 28), np.uint8)}, r"train and test must agree in channels"),
        ({"X": np.zeros((1, 28, 28, 3), np.uint8)}, r"images of cifar10 must be \(3, 32, 32\), got \(3, 28, 28\)"),
    ],
)
def test_an_npz_that_is_not_cifar_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    pixels, label = np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64)
    arrays = {"X_train": pixels, "y_train": label, "X_test": pixels, "y_test": label, "classes": np.array(NAMES)}
    if "X" in change:
        change = {"X_train": change["X"], "X_test": change["X"]}
    arrays = {key: array for key, array in (arrays | change).items() if array is not None}
    with pytest.raises(GradscopeError, match=message) as raised:
        read("cifar10", saved(tmp_path / "c.npz", arrays))
    assert "\n" not in str(raised.value)


def test_tiny_imagenet_has_any_of_its_classes(make_tree: MakeTree, tmp_path: Path) -> None:
    names = ["iPod", "abacus", "CD_player"]
    splits = read("tiny-imagenet", make_tree({"train": names, "test": names}, side=64))
    assert (splits.train.name, splits.train.classes) == ("tiny-imagenet", ("CD_player", "abacus", "iPod"))
    assert (splits.train.channels, splits.train.image_size, len(splits.test)) == (3, 64, 9)
    stored = saved(tmp_path / "tiny-imagenet.npz", arrays_of(splits, classes=names))
    assert read("tiny-imagenet", stored).test.labels.tolist() == splits.test.labels.tolist()


def test_tiny_imagenet_is_read_as_published(make_tree: MakeTree) -> None:
    root = make_tree({"train": ["n02/images", "n01/images"], "val": ["images"], "test": ["images"]}, side=64)
    rows = {"0.png": "n02", "1.png": "n09", "2.png": "n01"}
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("".join(f"{file}\t{wnid}\t0\t0\t62\t57\n" for file, wnid in rows.items()))
    splits = read("tiny-imagenet", root)
    assert splits.train.classes == ("n01", "n02")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = [np.asarray(Image.open(root / "val" / "images" / file)) for file in ("2.png", "0.png")]
    assert np.array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert splits.test.labels.tolist() == [0, 1]
    annotations.write_text("0.png\tn02\n")
    with pytest.raises(GradscopeError, match=r"val_annotations\.txt must name the class of every image, .* 1\.png"):
        read("tiny-imagenet", root)
    annotations.write_text("0.png n02\n")
    with pytest.raises(GradscopeError, match=r"val_annotations\.txt must have lines of file name, tab, class"):
        read("tiny-imagenet", root)


def test_what_is_not_tiny_imagenet_is_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"0\.png must be 64x64 pixels, got 6x6"):
        read("tiny-imagenet", make_tree())
    with pytest.raises(GradscopeError, match=r"must hold train/ and test/ \(or val/\), or tiny-imagenet\.npz"):
        read("tiny-imagenet", tmp_path)
    many = make_tree({"train": [str(number) for number in range(201)], "test": ["0"]}, count=1, name="many")
    with pytest.raises(GradscopeError, match="train must be at most 200 classes, each once, got 201"):
        read("tiny-imagenet", many)


@pytest.mark.real_images
@pytest.mark.parametrize(
    ("name", "packed", "per_class", "classes"),
    [("cifar10", "cifar10", 20, 10), ("cifar100", "cifar100", 2, 100), ("tiny-imagenet", "tiny-imagenet100", 2, 100)],
)
def test_real_images(unpack: Unpack, name: str, packed: str, per_class: int, classes: int) -> None:
    folder = unpack(packed, per_class)
    splits = read(name, folder)
    reference = torchvision.datasets.ImageFolder(folder / "test")
    expected = np.stack([np.asarray(image) for image, _ in reference]).transpose(0, 3, 1, 2)
    assert np.array_equal(splits.test.images.numpy(), expected)
    assert splits.test.labels.tolist() == reference.targets
    assert splits.test.classes == tuple(reference.classes)
    assert (len(splits.train), len(splits.test)) == (per_class * classes, per_class * classes)
    assert 0.4 < splits.train.images.float().mean() / 255 < 0.55
    assert same(read(name, unpack(packed, per_class, npz=True)), splits)
