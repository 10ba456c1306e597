import gzip
import hashlib
import json
import pickle
import struct
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gradscope.config import Data
from gradscope.data import places
from gradscope.data.names import DATASETS, check_data
from gradscope.data.published import CIFAR10, CIFAR100, Published
from gradscope.data.sources import load
from gradscope.errors import GradscopeError
from gradscope.vision import torchvision

MakeTree = Callable[..., Path]

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))


def data(dataset: str, root: Path | None = None, image_size: int | None = None) -> Data:
    return Data(dataset=dataset, data_root=root, image_size=image_size)


def test_every_set_describes_itself_in_a_line() -> None:
    named = {"digits", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "imagenet100"}
    assert set(DATASETS) == named | {"folder", "npz"}
    assert all(source.description and "\n" not in source.description for source in DATASETS.values())


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(GradscopeError, match="dataset: 'cifar-10' is unknown; did you mean 'cifar10'"):
        load(data("cifar-10"))


def test_digits_are_scikit_learns() -> None:
    splits = load(data("digits"))
    digits = load_digits()
    assert (splits.train.name, splits.train.channels, splits.train.image_size) == ("digits", 1, 8)
    assert splits.train.classes == tuple("0123456789")
    ours = torch.cat([splits.train.images, splits.test.images]).numpy()[:, 0].reshape(-1, 64)
    theirs = np.floor(digits.data * 255 / 16 + 0.5)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.astype(int).tolist()))
    counts = np.bincount(digits.target)
    assert torch.bincount(splits.test.labels).tolist() == [round(0.2 * count) for count in counts]
    assert load(data("digits")).test.fingerprint == splits.test.fingerprint


def test_only_folders_are_resized() -> None:
    assert load(data("digits", image_size=8)).train.image_size == 8
    with pytest.raises(GradscopeError, match=r"image_size must be left out for 'digits', .* 8 x 8 pixels .*got 28"):
        load(data("digits", image_size=28))


def write_idx(path: Path, array: np.ndarray[Any, Any], compressed: bool) -> None:
    content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    if compressed:
        path = path.with_name(f"{path.name}.gz")
        content = gzip.compress(content)
    path.write_bytes(content)


def write_fashion(folder: Path, compressed: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": RANDOM.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / name, array, compressed)
    return arrays


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path, below: str, compressed: bool) -> None:
    arrays = write_fashion(tmp_path / below, compressed)
    splits = load(data("fashion-mnist", tmp_path))
    assert np.array_equal(splits.train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(splits.train.labels.numpy(), arrays["train-labels-idx1-ubyte"])
    assert np.array_equal(splits.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert splits.test.classes[-1] == "Ankle boot"


@pytest.mark.parametrize("damage", ["cut", "no header", "empty", "gzip"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, damage: str) -> None:
    write_fashion(tmp_path, compressed=damage == "gzip")
    path = tmp_path / ("t10k-images-idx3-ubyte" + (".gz" if damage == "gzip" else ""))
    content = path.read_bytes()
    path.write_bytes({"no header": b"abcdefgh" + content[8:], "empty": b""}.get(damage, content[:-9]))
    with pytest.raises(GradscopeError, match=path.name) as raised:
        load(data("fashion-mnist", tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lengths", [(10, 28, 28), (2**32 - 1, 2**31, 28), (0, 2**32 - 1, 2**32 - 1)])
def test_an_idx_file_unpacks_no_more_than_its_header_says(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    write_fashion(tmp_path, compressed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(struct.pack(">4B3I", 0, 0, 8, 3, *lengths))
        for _ in range(64):
            file.write(bytes(2**24))
    tracemalloc.start()
    with pytest.raises(GradscopeError, match=path.name):
        load(data("fashion-mnist", tmp_path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26, "the file holds a gigabyte"


def test_missing_fashion_mnist_says_where_it_was_sought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(GradscopeError, match=r"FashionMNIST/raw, .*debian does; give `data_root` or `download`"):
        load(data("fashion-mnist", tmp_path))


def test_debians_fashion_mnist() -> None:
    if not places.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip(f"{places.DEBIAN_FASHION_MNIST} is not there")
    splits = load(data("fashion-mnist"))
    assert splits.train.images.shape == (60000, 1, 28, 28)
    assert torch.bincount(splits.test.labels).tolist() == [1000] * 10
    assert splits.train.images.float().mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # the set's published mean


def write_cifar(
    folder: Path, kind: Any, monkeypatch: pytest.MonkeyPatch, classes: Sequence[str] = ("ant", "bee", "cat")
) -> np.ndarray[Any, Any]:
    """A tiny set in the format of the published files, whose checksums torchvision is told to expect."""
    folder.mkdir(parents=True)
    pixels = RANDOM.integers(0, 256, (30, 3072), dtype=np.uint8)

    def write(name: str, content: object) -> list[str]:
        # The published pickles give a dtype's flags as 0 and 1, not as booleans.
        path = folder / name
        path.write_bytes(pickle.dumps(content, protocol=0).replace(b"I00\nI01\n", b"I0\nI1\n"))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    key = "labels" if kind is torchvision.datasets.CIFAR10 else "fine_labels"
    train = write("one", {"data": pixels[:20], key: [index % 3 for index in range(20)]})
    test = write("two", {"data": pixels[20:], key: [0, 1, 2, 2, 1, 0, 0, 1, 2, 0]})
    meta_name, meta_md5 = write("names", {"names": list(classes)})
    monkeypatch.setattr(kind, "train_list", [train])
    monkeypatch.setattr(kind, "test_list", [test])
    monkeypatch.setattr(kind, "meta", {"filename": meta_name, "key": "names", "md5": meta_md5})
    return pixels.reshape(30, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "kind"), [("cifar10", torchvision.datasets.CIFAR10), ("cifar100", torchvision.datasets.CIFAR100)]
)
def test_cifar_is_read_from_torchvisions_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, kind: Any
) -> None:
    pixels = write_cifar(tmp_path / kind.base_folder, kind, monkeypatch)
    splits = load(data(name, tmp_path))
    assert np.array_equal(splits.train.images.numpy(), pixels[:20])
    assert np.array_equal(splits.test.images.numpy(), pixels[20:])
    assert splits.test.labels.tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 2, 0]
    assert (splits.train.name, splits.train.classes) == (name, ("ant", "bee", "cat"))
    damaged = tmp_path / kind.base_folder / "two"
    damaged.write_bytes(damaged.read_bytes() + b"x")
    with pytest.raises(GradscopeError, match=f"must hold {kind.base_folder} undamaged, .* got .*`download`"):
        load(data(name, tmp_path))


@pytest.mark.parametrize(
    ("published", "kind"), [(CIFAR10, torchvision.datasets.CIFAR10), (CIFAR100, torchvision.datasets.CIFAR100)]
)
def test_cifar_is_the_same_in_an_npz(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: Published, kind: Any
) -> None:
    assert published.classes is not None
    write_cifar(tmp_path / kind.base_folder, kind, monkeypatch, published.classes)
    pickled = load(data(published.name, tmp_path))
    arrays = {
        f"{key}_{split}": part.numpy()
        for split, images in (("train", pickled.train), ("test", pickled.test))
        for key, part in (("X", images.images), ("y", images.labels))
    }
    path = tmp_path / f"{published.name}.npz"
    np.savez(path, **arrays, classes=np.array(published.classes))
    stored = load(data(published.name, path))
    assert (stored.train.name, stored.train.fingerprint) == (pickled.train.name, pickled.train.fingerprint)
    assert (stored.test.classes, stored.test.fingerprint) == (pickled.test.classes, pickled.test.fingerprint)
    np.savez(path, classes=np.array(["other"]))
    assert load(data(published.name, tmp_path)).test.fingerprint == pickled.test.fingerprint, "torchvision's come first"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_is_a_users_mistake(tmp_path: Path, name: str) -> None:
    with pytest.raises(GradscopeError, match="`download` fetches it") as raised:
        load(data(name, tmp_path))
    assert "\n" not in str(raised.value)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a server of this machine gives its files."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    class Patient(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """A client that only asked for the address hangs up before the file is sent: nothing to print."""

    with Patient(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("root", [None, "root"])
def test_a_download_comes_when_asked_and_is_found_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    served: tuple[Path, str],
    capfd: pytest.CaptureFixture[str],
    root: str | None,
) -> None:
    folder, address = served
    kind = torchvision.datasets.CIFAR10
    pixels = write_cifar(tmp_path / "made" / kind.base_folder, kind, monkeypatch)
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "made" / kind.base_folder, kind.base_folder)
    monkeypatch.setattr(kind, "url", address + archive.name)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    asked = data("cifar10", tmp_path / root if root else None)
    with pytest.raises(GradscopeError, match="`download`"):
        load(asked)
    assert np.array_equal(load(asked, download=True).test.images.numpy(), pixels[20:])
    archive.unlink()
    assert np.array_equal(load(asked).test.images.numpy(), pixels[20:])
    assert load(asked, download=True).test.name == "cifar10"
    assert capfd.readouterr() == ("", ""), "no progress bar where stderr is no terminal"


def test_fashion_mnist_is_downloaded_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: tuple[Path, str]
) -> None:
    folder, address = served
    kind = torchvision.datasets.FashionMNIST
    arrays = write_fashion(folder, compressed=True)
    resources = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in sorted(folder.iterdir())]
    monkeypatch.setattr(kind, "mirrors", [address])
    monkeypatch.setattr(kind, "resources", sorted(resources, reverse=True))
    monkeypatch.setattr(places, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    splits = load(data("fashion-mnist", tmp_path / "root"), download=True)
    assert np.array_equal(splits.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert load(data("fashion-mnist", tmp_path / "root")).train.fingerprint == splits.train.fingerprint


@pytest.mark.parametrize(
    ("name", "kind"), [("cifar10", torchvision.datasets.CIFAR10), ("fashion-mnist", torchvision.datasets.FashionMNIST)]
)
def test_a_download_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, kind: Any
) -> None:
    nowhere = (tmp_path / "nowhere").as_uri()
    monkeypatch.setattr(places, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setattr(kind, "url", f"{nowhere}/cifar.tar.gz", raising=False)
    monkeypatch.setattr(kind, "mirrors", [f"{nowhere}/"], raising=False)
    with pytest.raises(GradscopeError, match=f"download: fetching {kind.__name__} into") as raised:
        load(data(name, tmp_path / "root"), download=True)
    assert "\n" not in str(raised.value)


def test_a_folder_is_named_after_itself(make_tree: MakeTree) -> None:
    root = make_tree({"train": ["cat", "dog"], "val": ["dog"]}, name="pets.v2")
    splits = load(data("folder", root))
    assert (splits.train.name, splits.test.name) == ("pets.v2", "pets.v2")
    assert splits.test.labels.tolist() == [1, 1, 1]
    assert load(data("folder", root, image_size=4)).train.image_size == 4


@pytest.mark.parametrize("split", ["test", "val", "."])
def test_a_folder_without_train_is_test_images_alone(make_tree: MakeTree, split: str) -> None:
    root = make_tree({split: ["cat", "dog"]}, count=2, name="pets")
    splits = load(data("folder", root))
    assert splits.training is None
    assert (splits.test.name, splits.test.classes) == ("pets", ("cat", "dog"))
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    again = load(data("folder", root))
    assert again.test.fingerprint == splits.test.fingerprint
    whole = make_tree({"train": ["cat", "dog"], "test": ["cat", "dog"]}, count=2, name="whole")
    assert load(data("folder", whole)).train.fingerprint == splits.test.fingerprint
    with pytest.raises(GradscopeError, match="pets: the data set must have training images, got only test images"):
        _ = splits.train


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (None, "data_root must be given for 'folder'"),
        ("nowhere", "nowhere does not exist"),
        (
            "empty",
            r"empty must hold a folder of images for each class .or train/ and test/ with such folders., got none",
        ),
        ("half", r"must hold test/ or val/, got train"),
    ],
)
def test_a_folder_without_its_splits_is_refused(tmp_path: Path, root: str | None, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "train").mkdir(parents=True)
    with pytest.raises(GradscopeError, match=message):
        load(data("folder", tmp_path / root if root else None))


@pytest.mark.parametrize("listing", ["classes.txt", "Labels.json", None])
def test_imagenet100_takes_the_listed_classes_at_32(make_tree: MakeTree, listing: str | None) -> None:
    names = ["n01", "n02", "n03"]
    root = make_tree({"train": names, "val": names, "test": ["unlabelled"]}, side=40)
    if listing == "classes.txt":
        (root / listing).write_bytes(b"\xef\xbb\xbfn03\r\nn01\r\n\r\n")
    elif listing == "Labels.json":
        (root / listing).write_text(json.dumps({"n03": "tench, Tinca tinca", "n01": "goldfish"}))
    splits = load(data("imagenet100", root))
    assert splits.train.name == "imagenet100"
    assert splits.test.image_size == 32
    assert splits.train.classes == (("n03", "n01") if listing else tuple(names))
    assert len(splits.test) == 3 * len(splits.train.classes)


def test_imagenet100_knows_two_sizes(make_tree: MakeTree) -> None:
    root = make_tree({"train": ["n01"], "test": ["n01"]}, count=1)
    assert load(data("imagenet100", root, 224)).train.images.shape == (1, 3, 224, 224)
    with pytest.raises(GradscopeError, match="must be 32 or 224 for 'imagenet100', got 64"):
        load(data("imagenet100", root, 64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n01\nn09\n", "train must hold images of n09"),
        ("n01\nn01\n", "each once"),
        ("\n", "one or more"),
        ("n01\n/usr\n", "classes.txt must list names of folders, not paths, got '/usr'"),
        ("n01\n../..\n", "not paths, got '../..'"),
        ("..\nn01", "not paths, got '..'"),
        ("n01\na\0b", "not paths, got"),
        ("n01\n" + "n" * 300, "not paths, got 'nnn"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(make_tree: MakeTree, content: str, message: str) -> None:
    root = make_tree({"train": ["n01"], "test": ["n01"]})
    (root / "classes.txt").write_text(content)
    with pytest.raises(GradscopeError, match=message):
        load(data("imagenet100", root))


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"n01": ' + "[" * 100_000])
def test_a_broken_labels_file_is_named(make_tree: MakeTree, content: str) -> None:
    root = make_tree({"train": ["n01"], "test": ["n01"]})
    (root / "Labels.json").write_text(content)
    with pytest.raises(GradscopeError, match=r"Labels\.json (is not JSON|must be a JSON object)"):
        load(data("imagenet100", root))


@pytest.mark.parametrize("root", ["x" * 300, "a\0b", "loop"])
def test_a_root_that_is_no_path_is_refused_in_one_line(root: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GradscopeError, match=r"^data_root: .*(must be a valid path|must be a folder)") as refused:
        check_data(Data(dataset="npz", data_root=Path(root)))
    assert len(str(refused.value).splitlines()) == 1


def test_a_path_that_is_too_long_is_no_data_set() -> None:
    with pytest.raises(GradscopeError, match=r"^dataset must be a name of"):
        load(Data(dataset=f"{'x' * 300}/y"))
