import pytest
import torch
from torch import Tensor

from gradscope.data.augment import Augmentation, apply, draw
from gradscope.vision import torchvision

functional = torchvision.transforms.v2.functional


def images(count: int = 64, channels: int = 3, side: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 256, (count, channels, side, side), generator=generator).to(torch.uint8)


def drawn(count: int = 64, side: int = 9, *, seed: int = 0, **asked: object) -> Augmentation:
    settings = {"horizontal_flip": False, "vertical_flip": False, "shift": 0.0} | asked
    return draw(count, side, side, **settings, generator=torch.Generator().manual_seed(seed))


def one_by_one(batch: Tensor, augmentation: Augmentation) -> Tensor:
    """The same transforms by torchvision, an image at a time."""
    results = []
    for index, image in enumerate(batch):
        if augmentation.horizontal_flip is not None and augmentation.horizontal_flip[index]:
            image = functional.horizontal_flip(image)
        if augmentation.vertical_flip is not None and augmentation.vertical_flip[index]:
            image = functional.vertical_flip(image)
        if augmentation.shift_down is not None and augmentation.shift_right is not None:
            translate = [int(augmentation.shift_right[index]), int(augmentation.shift_down[index])]
            image = functional.affine(image, angle=0.0, translate=translate, scale=1.0, shear=[0.0, 0.0])
        results.append(image)
    return torch.stack(results)


def test_the_numbers_drawn_for_square_images_are_those_of_every_version() -> None:
    """One draw of (2, count) once made both shifts; checkpoints would not repeat if that changed."""
    stream = torch.Generator().manual_seed(0)
    torch.rand(2, 64, generator=stream)
    expected = torch.randint(-2, 3, (2, 64), generator=stream)
    shifts = drawn(shift=0.2)
    assert torch.equal(torch.stack([shifts.shift_down, shifts.shift_right]), expected)


def test_each_side_has_its_own_reach() -> None:
    stream = torch.Generator().manual_seed(0)
    wide = draw(500, 10, 30, horizontal_flip=True, vertical_flip=True, shift=0.1, generator=stream)
    assert wide.shift_down.abs().max() == 1
    assert wide.shift_right.abs().max() == 3
    batch = torch.rand(500, 1, 10, 30)
    assert torch.equal(apply(batch, wide), one_by_one(batch, wide))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 0.2, 0.49])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("horizontal", [False, True])
def test_it_equals_torchvision_image_by_image(horizontal: bool, vertical: bool, shift: float, channels: int) -> None:
    batch = images(channels=channels)
    augmentation = drawn(horizontal_flip=horizontal, vertical_flip=vertical, shift=shift)
    result = apply(batch, augmentation)
    assert result.dtype == torch.uint8
    assert torch.equal(result, one_by_one(batch, augmentation))
    assert (result is batch) == (not horizontal and not vertical and shift == 0.0)
    assert torch.equal(batch, images(channels=channels)), "the caller's images were changed"


def test_it_takes_channels_last_images() -> None:
    augmentation = drawn(horizontal_flip=True, shift=0.2)
    strided = images().to(memory_format=torch.channels_last)
    assert torch.equal(apply(strided, augmentation), apply(images(), augmentation))


def test_a_shift_that_rounds_to_no_pixel_changes_nothing() -> None:
    batch = images()
    assert apply(batch, drawn(shift=0.05)) is batch


def test_a_share_of_the_draws_fits_its_share_of_the_images() -> None:
    augmentation = drawn(horizontal_flip=True, vertical_flip=True, shift=0.3)
    whole = apply(images(), augmentation)
    parts = [apply(images()[start : start + 16], augmentation[start : start + 16]) for start in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), whole)


def test_flips_are_fair_and_shifts_uniform_over_the_whole_range() -> None:
    count = 20_000
    augmentation = drawn(count, 32, horizontal_flip=True, vertical_flip=True, shift=0.1)
    for flips in (augmentation.horizontal_flip, augmentation.vertical_flip):
        assert flips is not None
        assert abs(flips.float().mean() - 0.5) < 0.02  # 5 standard deviations
    for shifts in (augmentation.shift_down, augmentation.shift_right):
        assert shifts is not None
        values, counts = shifts.unique(return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert ((counts / count - 1 / 7).abs() < 0.0125).all()  # 5 standard deviations


def test_asking_for_one_transform_changes_no_other() -> None:
    alone = drawn(shift=0.2)
    beside = drawn(horizontal_flip=True, vertical_flip=True, shift=0.2)
    assert alone.shift_down is not None
    assert beside.shift_down is not None
    assert torch.equal(alone.shift_down, beside.shift_down)
    flips, others = drawn(horizontal_flip=True).horizontal_flip, drawn(seed=1, horizontal_flip=True).horizontal_flip
    assert flips is not None
    assert beside.horizontal_flip is not None
    assert others is not None
    assert torch.equal(flips, beside.horizontal_flip)
    assert not torch.equal(flips, others)
