import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gradscope
from gradscope.data.cache import Tree, load_tree
from gradscope.data.image_set import Splits
from gradscope.data.places import cache_directory
from gradscope.errors import GradscopeError
from gradscope.vision import torchvision

MakeTree = Callable[..., Path]


def tree_of(root: Path, **options: object) -> Tree:
    return Tree(root / "train", root / "test", **options)


def load(root: Path, cache: Path, **options: object) -> Splits:
    return load_tree("tree", tree_of(root, **options), cache)


def entries(cache: Path) -> set[str]:
    return {entry.name for entry in (cache / "folders").iterdir() if not entry.name.endswith(".lock")}


def only_entry(cache: Path) -> Path:
    (name,) = entries(cache)
    return cache / "folders" / name


def test_it_holds_what_torchvision_reads(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"train": ["dog", "cat", "Zebra"], "test": ["dog", "cat"]})
    nested = root / "train" / "cat" / "more"
    nested.mkdir()
    Image.new("RGB", (6, 6), (1, 2, 3)).save(nested / "x.BMP")
    splits = load(root, tmp_path / "cache")
    for split, images in (("train", splits.train), ("test", splits.test)):
        reference = torchvision.datasets.ImageFolder(root / split)
        expected = np.stack([np.asarray(image) for image, _ in reference]).transpose(0, 3, 1, 2)
        assert np.array_equal(images.images.numpy(), expected)
        names = [reference.classes[label] for label in reference.targets]
        assert [images.classes[label] for label in images.labels.tolist()] == names
    assert splits.train.classes == splits.test.classes == ("Zebra", "cat", "dog")


def test_the_second_time_nothing_is_decoded(make_tree: MakeTree, tmp_path: Path) -> None:
    root, cache = make_tree(), tmp_path / "cache"
    first = load(root, cache)
    written = (only_entry(cache) / "train.bin").stat()
    second = load(root, cache)
    again = (only_entry(cache) / "train.bin").stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert second.train.fingerprint == first.train.fingerprint
    assert torch.equal(second.test.images, first.test.images)


def test_a_path_through_a_link_finds_the_same_entry(make_tree: MakeTree, tmp_path: Path) -> None:
    root, cache = make_tree(), tmp_path / "cache"
    load(root, cache)
    before = entries(cache)
    (tmp_path / "link").symlink_to(root)
    load(tmp_path / "link", cache)
    assert entries(cache) == before


@pytest.mark.parametrize("change", ["pixels", "added", "removed", "new class"])
def test_a_changed_folder_is_decoded_anew_and_the_old_entry_goes(
    make_tree: MakeTree, tmp_path: Path, change: str
) -> None:
    root, cache = make_tree(), tmp_path / "cache"
    before, resized = load(root, cache), load(root, cache, image_size=4)
    old = entries(cache)
    image = Image.new("RGB", (6, 6), (9, 8, 7))
    if change == "pixels":
        image.save(root / "train" / "dog" / "1.png")
    elif change == "added":
        image.save(root / "train" / "dog" / "9.png")
    elif change == "removed":
        (root / "train" / "dog" / "1.png").unlink()
    else:
        (root / "train" / "eel").mkdir()
        image.save(root / "train" / "eel" / "0.png")
    after = load(root, cache)
    assert after.train.fingerprint != before.train.fingerprint
    assert len(after.train) - len(before.train) == {"pixels": 0, "added": 1, "removed": -1, "new class": 1}[change]
    assert (after.train.images == torch.tensor([9, 8, 7]).byte().view(3, 1, 1)).all((1, 2, 3)).any() == (
        change != "removed"
    )
    assert len(entries(cache)) == 2, "one entry of each image size"
    assert len(entries(cache) & old) == 1, "the entry of the other image size stays"
    assert resized.train.image_size == 4


@pytest.mark.parametrize("damage", ["cut", "one byte", "no pixels", "no record", "broken record", "half a record"])
def test_a_damaged_entry_is_rebuilt(make_tree: MakeTree, tmp_path: Path, damage: str) -> None:
    root, cache = make_tree(), tmp_path / "cache"
    sound = load(root, cache)
    expected = sound.train.images.clone()
    entry = only_entry(cache)
    pixels, record = entry / "train.bin", entry / "format.json"
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "one byte":
        content = bytearray(pixels.read_bytes())
        content[5] ^= 1
        pixels.write_bytes(content)
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("{" if damage == "broken record" else '{"train": {}}')
    again = load(root, cache)
    assert torch.equal(again.train.images, expected)
    assert again.train.fingerprint == sound.train.fingerprint
    assert only_entry(cache) == entry


def test_what_a_killed_process_left_is_cleared(make_tree: MakeTree, tmp_path: Path) -> None:
    root, cache = make_tree(), tmp_path / "cache"
    load(root, cache)
    entry = only_entry(cache)
    left = entry.with_name(entry.name.partition("-")[0] + "-building")
    entry.rename(left)
    (left / "train.bin").write_bytes(b"half")
    load(root, cache)
    assert only_entry(cache) == entry


def test_a_failed_build_leaves_nothing(make_tree: MakeTree, tmp_path: Path) -> None:
    root, cache = make_tree(), tmp_path / "cache"
    broken = root / "test" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(GradscopeError, match=r"dog/1\.png cannot be decoded"):
        load(root, cache)
    assert entries(cache) == set()


def test_writing_to_the_images_does_not_reach_the_cache(make_tree: MakeTree, tmp_path: Path) -> None:
    root, cache = make_tree(), tmp_path / "cache"
    first = load(root, cache)
    file = only_entry(cache) / "train.bin"
    before = file.read_bytes()
    first.train.images.zero_()
    assert not first.train.images.any()
    assert file.read_bytes() == before


BUILDER = """
import sys, time
from pathlib import Path
from gradscope.data import cache

root, directory, go, ready = map(Path, sys.argv[1:])
decode, decoded = cache.read_pixels, []

def counting(path, channels, side):
    decoded.append(path)
    time.sleep(0.005)
    return decode(path, channels, side)

cache.read_pixels = counting
ready.touch()
while not go.exists():
    time.sleep(0.002)
splits = cache.load_tree("tree", cache.Tree(root / "train", root / "test"), directory)
print(len(decoded), splits.train.fingerprint, splits.test.fingerprint)
"""


def test_two_processes_at_once_decode_once(make_tree: MakeTree, tmp_path: Path) -> None:
    root, cache, go = make_tree(count=40), tmp_path / "cache", tmp_path / "go"
    ready = [tmp_path / f"ready-{index}" for index in range(2)]
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, root, cache, go, each],
            cwd=Path(gradscope.__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in ready
    ]
    while not all(each.exists() for each in ready) and all(builder.poll() is None for builder in builders):
        time.sleep(0.02)
    go.touch()
    results = [builder.communicate(timeout=60) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], results
    assert [errors for _, errors in results] == ["", ""], "no progress bar where stderr is no terminal"
    counts, *prints = zip(*(output.split() for output, _ in results), strict=True)
    assert sorted(map(int, counts)) == [0, 160]
    assert all(first == second for first, second in prints)
    assert load(root, cache).train.fingerprint == prints[0][0]


def test_grey_and_colour_are_decided_for_both_splits(make_tree: MakeTree, tmp_path: Path) -> None:
    grey = load(make_tree(mode="L", name="grey"), tmp_path / "cache")
    assert (grey.train.channels, grey.test.channels) == (1, 1)
    root = make_tree(mode="L", name="mixed")
    Image.new("RGB", (6, 6), (200, 10, 10)).save(root / "test" / "dog" / "0.png")
    mixed = load(root, tmp_path / "cache")
    assert (mixed.train.channels, mixed.test.channels) == (3, 3)
    assert torch.equal(mixed.train.images[:, 0], mixed.train.images[:, 2])


def test_an_image_size_resizes(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree()
    Image.new("RGB", (9, 5)).save(root / "train" / "cat" / "0.png")
    with pytest.raises(GradscopeError, match=r"image_size must be given .*(cat/0\.png is 9x5|is 6x6, 0\.png 9x5)"):
        load(root, tmp_path / "cache")
    assert load(root, tmp_path / "cache", image_size=4).train.images.shape == (6, 3, 4, 4)


def test_listed_classes_are_taken_in_their_order(make_tree: MakeTree, tmp_path: Path) -> None:
    names = ["ant", "bee", "cat"]
    root = make_tree({"train": names, "test": [*names, "unlisted"]})
    splits = load(root, tmp_path / "cache", classes=("cat", "ant"))
    assert splits.train.classes == ("cat", "ant")
    with Image.open(root / "train" / "cat" / "0.png") as image:
        assert np.array_equal(splits.train.images[0].permute(1, 2, 0).numpy(), np.asarray(image))
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_hidden_files_and_other_files_are_no_images(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree()
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "cat" / "._0.png").write_bytes(b"resource fork")
    (root / "train" / "cat" / "notes.txt").write_text("text")
    assert len(load(root, tmp_path / "cache").train) == 6


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["cat"], "test": ["cat", "dog"]}, "test must hold classes of .*train only, got dog"),
        ({"train": [], "test": ["cat"]}, "train must hold a folder of images for each class"),
        ({"train": ["cat"], "test": []}, "test must hold images, got none; images end in .jpg"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(
    make_tree: MakeTree, tmp_path: Path, splits: dict[str, list[str]], message: str
) -> None:
    root = make_tree(splits)
    for split in splits:
        (root / split).mkdir(parents=True, exist_ok=True)
    with pytest.raises(GradscopeError, match=message):
        load(root, tmp_path / "cache")


def test_a_class_without_images_is_named(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree()
    (root / "train" / "eel").mkdir()
    with pytest.raises(GradscopeError, match="train must hold images of eel"):
        load(root, tmp_path / "cache")


def test_a_dangling_link_is_a_users_mistake(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree()
    (root / "train" / "cat" / "9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(GradscopeError, match=r"data_root: .*9\.png: No such file"):
        load(root, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_a_users_mistake(make_tree: MakeTree, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GradscopeError, match=r"GRADSCOPE_CACHE: .*set it to"):
        load(make_tree(), tmp_path / "file")


def test_the_cache_is_where_it_is_told_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "environment"))
    assert cache_directory(tmp_path / "argument") == tmp_path / "argument"
    assert cache_directory() == tmp_path / "environment"
    monkeypatch.delenv("GRADSCOPE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "gradscope"


def test_a_pipe_is_refused_before_it_is_opened(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree()
    os.mkfifo(root / "train" / "cat" / "x.png")
    code = "import sys; from pathlib import Path; from gradscope.data.cache import Tree, load_tree; "
    code += "load_tree('tree', Tree(*(Path(sys.argv[1], name) for name in ('train', 'test'))), Path(sys.argv[2]))"
    arguments = [sys.executable, "-c", code, str(root), str(tmp_path / "cache")]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert "x.png must be a regular file" in ended.stderr


@pytest.mark.parametrize(
    ("link", "message"),
    [("cat/again", "again must not link back"), ("cat/x.png", "x.png: Too many levels"), ("cat/" + 33 * "d/", "deep")],
)
def test_a_folder_without_end_is_refused(make_tree: MakeTree, tmp_path: Path, link: str, message: str) -> None:
    root = make_tree()
    path = root / "train" / link
    if link.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.symlink_to("." if link.endswith("again") else "x.png")
    with pytest.raises(GradscopeError, match=message):
        load(root, tmp_path / "cache")


def test_a_large_image_is_refused_in_one_line(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree()
    (root / "train" / "cat" / "x\ny.ppm").write_bytes(b"P6 9000 10000 255\n")
    with pytest.raises(GradscopeError, match=r"x\\ny\.ppm .* 1 to 89478485 pixels, got 9000x10000") as raised:
        load(root, tmp_path / "cache")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["b\nc", "b\udcff"], ids=["two lines", "not text"])
def test_the_name_of_a_class_is_one_line(make_tree: MakeTree, tmp_path: Path, name: str) -> None:
    root = make_tree({"train": ["a", name], "test": ["a", name]})
    with pytest.raises(GradscopeError, match=r"train: names of classes must be one line .*, got 'b\\") as raised:
        load(root, tmp_path / "cache")
    assert str(raised.value).isprintable()
