import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from gradscope.data import image_set
from gradscope.data.image_set import (
    ImageSet,
    Splits,
    fingerprint,
    stratified_sample,
    stratified_split,
    training_split,
)
from gradscope.errors import GradscopeError

CPU = torch.device("cpu")


def small_set(
    count: int = 10, channels: int = 3, side: int = 4, classes: tuple[str, ...] = ("a", "b", "c")
) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, side, side), generator=generator).to(torch.uint8)
    return ImageSet.from_tensors("small", images, torch.arange(count) % len(classes), classes)


def test_it_knows_its_size() -> None:
    images = small_set(count=7, channels=1, side=5)
    assert (len(images), images.channels, images.image_size) == (7, 1, 5)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4).double(), torch.zeros(2).long(), r"uint8 or float32 \(N, C, H, W\), got float64"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"of shape \(2, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long(), "at least one image"),
        (torch.full((2, 3, 4, 4), 1.2), torch.zeros(2).long(), r"images must be in \[0, 1\], got 1\.2 to 1\.2; norm"),
        (torch.full((2, 3, 4, 4), 255.0), torch.zeros(2).long(), "got 255 to 255; divide by 255 or pass uint8"),
        (torch.full((2, 3, 4, 4), 1 + 1e-6), torch.zeros(2).long(), r"got 1\.000001 to .*; clamp to \[0, 1\]"),
        (torch.full((2, 3, 4, 4), torch.nan), torch.zeros(2).long(), "must be finite, got NaN or .* 2 of 2 .* in 0"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2).int(), "int64 .*, got int32"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"one for each image, got int64 of shape \(3,\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2]), r"must be from 0 to 1 \(2 classes\), got 2"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([-1, 1]), "got -1"),
    ],
)
def test_what_does_not_fit_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(GradscopeError, match=message) as raised:
        ImageSet("bad", images, labels, ("a", "b"), "")
    assert "\n" not in str(raised.value)


def test_the_fingerprint_sees_every_change() -> None:
    base = small_set()
    changed = base.images.clone()
    changed[9, 2, 3, 3] ^= 1
    prints = {
        base.fingerprint,
        fingerprint(changed, base.labels, base.classes),
        fingerprint(base.images, base.labels.flip(0), base.classes),
        fingerprint(base.images, base.labels, ("a", "b", "d")),
        fingerprint(base.images.view(10, 1, 12, 4), base.labels, base.classes),
    }
    assert len(prints) == 5


def test_the_fingerprint_depends_on_content_only(monkeypatch: pytest.MonkeyPatch) -> None:
    base = small_set()
    strided = base.images.to(memory_format=torch.channels_last)
    assert fingerprint(strided, base.labels, list(base.classes)) == base.fingerprint
    grey = base.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[:, :1]
    doubled = base.labels.repeat_interleave(2)[::2]
    assert fingerprint(grey, doubled, base.classes) == fingerprint(grey.contiguous(), base.labels, base.classes)
    monkeypatch.setattr(image_set, "_CHUNK_BYTES", 100)
    assert fingerprint(base.images, base.labels, base.classes) == base.fingerprint


def test_a_subset_has_its_images_and_its_own_fingerprint() -> None:
    base = small_set()
    part = base.subset(torch.tensor([7, 2, 2]))
    assert torch.equal(part.images, base.images[[7, 2, 2]])
    assert part.labels.tolist() == [1, 2, 2]
    assert part.fingerprint == base.subset(torch.tensor([7, 2, 2])).fingerprint
    others = {base.fingerprint, base.subset(torch.tensor([2, 7, 2])).fingerprint, part.fingerprint}
    assert len(others) == 3
    part.images.zero_()
    assert base.images[7].any()


@pytest.mark.parametrize(
    "indices", [torch.tensor([10]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([]).long()]
)
def test_a_subset_of_no_such_images_is_refused(indices: Tensor) -> None:
    with pytest.raises(GradscopeError, match=r"indices must be one or more int64 .* from 0 to 9"):
        small_set().subset(indices)


def test_a_batch_is_exactly_the_bytes_over_255() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    batch, labels = ImageSet.from_tensors("all", images, torch.tensor([0]), ["a"]).batch(torch.tensor([0]), CPU)
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy().ravel(), expected)
    assert labels.tolist() == [0]


def test_a_raw_batch_is_a_copy_of_the_bytes() -> None:
    base = small_set()
    raw, labels = base.raw_batch(torch.tensor([3, 1]), CPU)
    assert raw.dtype == torch.uint8
    assert torch.equal(raw, base.images[[3, 1]])
    assert labels.tolist() == [0, 1]
    raw.zero_()
    assert base.images[3].any()


def real_floats() -> Tensor:
    """Digits as scikit-learn has them, 17 grey levels: as floats in [0, 1], no byte over 255."""
    return torch.from_numpy(load_digits().images[:20] / 16).float()[:, None]


def test_floats_are_used_as_they_are() -> None:
    pixels = real_floats()
    kept = ImageSet.from_tensors("floats", pixels, torch.arange(20) % 10)
    batch, _ = kept.batch(torch.tensor([5, 3]), CPU)
    assert torch.equal(batch, pixels[[5, 3]])
    mean, std = kept.channel_statistics(torch.arange(20))
    assert mean[0] == pytest.approx(float(pixels.mean()))
    assert std[0] == pytest.approx(float(pixels.double().std(correction=0)))
    assert kept.subset(torch.tensor([1])).images.dtype == torch.float32
    batch.zero_()
    assert kept.images[5].any()


def test_the_fingerprint_of_floats_is_of_the_floats() -> None:
    pixels, labels = real_floats(), torch.arange(20) % 10
    prints = {
        ImageSet.from_tensors("a", pixels, labels).fingerprint,
        ImageSet.from_tensors("a", torch.nextafter(pixels, torch.tensor(0.5)), labels).fingerprint,
        ImageSet.from_tensors("a", (pixels * 255).byte(), labels).fingerprint,
    }
    assert len(prints) == 3


def test_the_fingerprint_of_bytes_is_that_of_every_version() -> None:
    """Checkpoints and results name their data by it."""
    assert small_set().fingerprint == "78f628c0640fedf3246e4e4840542ac1"


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_labels_of_any_integer_type_and_no_names(kind: torch.dtype) -> None:
    base = small_set(classes=("0", "1", "2"))
    other = ImageSet.from_tensors("small", base.images, base.labels.to(kind))
    assert other.labels.dtype == torch.int64
    assert (other.classes, other.fingerprint) == (base.classes, base.fingerprint)


def test_images_need_not_be_square() -> None:
    wide = ImageSet.from_tensors("wide", torch.zeros(2, 3, 4, 6).byte(), torch.tensor([0, 1]))
    assert (wide.height, wide.width) == (4, 6)
    with pytest.raises(GradscopeError, match="wide: images must be square here, got height 4 and width 6"):
        _ = wide.image_size
    images = torch.rand(5, 3, 4, 6)
    mean, std = ImageSet.from_tensors("wide", images, torch.zeros(5).long()).channel_statistics(torch.arange(5))
    torch.testing.assert_close(torch.tensor(mean), images.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(torch.tensor(std), images.std(dim=(0, 2, 3), correction=0))


def test_batches_pass_through_everything_in_order() -> None:
    base = small_set()
    parts = list(base.batches(4, CPU))
    assert [len(indices) for indices, _, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([indices for indices, _, _ in parts]), torch.arange(10))
    assert torch.equal(torch.cat([images for _, images, _ in parts]), base.images / 255)
    assert torch.equal(torch.cat([labels for _, _, labels in parts]), base.labels)


def test_on_the_cpu_nothing_is_copied() -> None:
    base = small_set()
    assert base.on(CPU).images.data_ptr() == base.images.data_ptr()


def test_splits_must_agree() -> None:
    with pytest.raises(GradscopeError, match="agree in channels, got 3 and 1"):
        Splits(small_set(), small_set(channels=1))
    with pytest.raises(GradscopeError, match="agree in height, got 4 and 5"):
        Splits(small_set(), small_set(side=5))
    with pytest.raises(GradscopeError, match="agree in classes"):
        Splits(small_set(), small_set(classes=("a", "b", "d")))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.49])
def test_each_class_gives_its_exact_share(fraction: float) -> None:
    labels = torch.tensor([0] * 37 + [1] * 100 + [2] * 14)[
        torch.randperm(151, generator=torch.Generator().manual_seed(1))
    ]
    train, held = stratified_split(labels, fraction, seed=0)
    assert [int((labels[held] == label).sum()) for label in range(3)] == [round(fraction * n) for n in (37, 100, 14)]
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(151))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(held, held.sort().values)


def test_small_classes_keep_one_and_give_one() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    train, held = stratified_split(labels, 0.1, seed=0)
    assert sorted(labels[held].tolist()) == [1, 2]
    train, held = stratified_split(labels, 0.99, seed=0)
    assert sorted(labels[train].tolist()) == [0, 1, 2]


def test_the_seed_decides_and_classes_are_independent() -> None:
    labels = torch.arange(300) % 3
    held = stratified_split(labels, 0.2, seed=0)[1]
    assert torch.equal(held, stratified_split(labels, 0.2, seed=0)[1])
    assert not torch.equal(held, stratified_split(labels, 0.2, seed=1)[1])
    longer = torch.cat([labels, torch.full((50,), 3)])
    held_longer = stratified_split(longer, 0.2, seed=0)[1]
    assert torch.equal(held_longer[held_longer < 300], held)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_0_and_1_is_refused(fraction: float) -> None:
    with pytest.raises(GradscopeError, match="fraction must be between 0 and 1"):
        stratified_split(torch.zeros(4).long(), fraction, seed=0)


@pytest.mark.parametrize("count", [2, 3, 10, 77, 150, 151])
def test_a_sample_has_every_class_in_its_share(count: int) -> None:
    labels = torch.tensor([0] * 37 + [1] * 100 + [2] * 14)
    used = stratified_sample(labels, count, seed=3)
    assert len(used.unique()) == len(used) == count
    assert torch.equal(used, used.sort().values)
    counts = [int((labels[used] == label).sum()) for label in range(3)]
    assert all(abs(found - size * count / 151) < 1 for found, size in zip(counts, (37, 100, 14), strict=True))
    assert torch.equal(used, stratified_sample(labels, count, seed=3))
    assert count in (2, 3, 151) or not torch.equal(used, stratified_sample(labels, count, seed=4))


@pytest.mark.parametrize("count", [1, 152])
def test_a_sample_of_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(GradscopeError, match=f"train_samples must be from 2 to 151, the training images, got {count}"):
        stratified_sample(torch.zeros(151).long(), count, seed=0)


def test_a_training_split_of_a_sample_is_split_within_it() -> None:
    labels = torch.arange(300) % 3
    trained, held_out = training_split(labels, 0.2, 5, samples=60)
    assert torch.equal(torch.cat([trained, held_out]).sort().values, stratified_sample(labels, 60, 5))
    assert [int((labels[held_out] == label).sum()) for label in range(3)] == [4, 4, 4]
    for found, expected in zip(training_split(labels, 0.2, 5), stratified_split(labels, 0.2, 5), strict=True):
        assert torch.equal(found, expected)
