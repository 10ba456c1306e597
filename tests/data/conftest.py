"""Small image trees for the tests of this folder."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeTree = Callable[..., Path]


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Write ``root/<split>/<class>/<n>.png`` with random pixels, ``count`` for each class of each split."""

    def make(
        splits: Mapping[str, list[str]] | None = None,
        count: int = 3,
        side: int = 6,
        mode: str = "RGB",
        name: str = "tree",
    ) -> Path:
        random = np.random.default_rng(0)
        root = tmp_path / name
        for split, classes in (splits or {"train": ["cat", "dog"], "test": ["cat", "dog"]}).items():
            for label in classes:
                folder = root / split / label
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
                    Image.fromarray(pixels).convert(mode).save(folder / f"{index}.png")
        return root

    return make
