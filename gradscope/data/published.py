"""Read published data sets from an image folder or an ``.npz``: CIFAR-10, CIFAR-100, Tiny-ImageNet.

The label of a class is its position in alphabetical order, as in torchvision's files. So labels, and the fingerprint of
the same images in the same order, do not depend on the storage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gradscope.data.cache import Tree, class_folders, load_tree
from gradscope.data.formats import read_npz
from gradscope.data.image_set import ImageSet, Splits
from gradscope.data.places import split_folder
from gradscope.errors import GradscopeError, first_of

#: The table of Tiny-ImageNet's validation images; the published set keeps them in one folder.
_VAL_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class Published:
    """A set of square RGB images: its name, side in pixels, number of classes, and their names if all are required.

    If ``classes`` is None, any number of classes up to ``class_count`` is accepted, under any names.
    """

    name: str
    side: int
    class_count: int
    classes: tuple[str, ...] | None = None

    def read(self, path: Path, cache: Path | None) -> Splits:
        """Read the splits in ``path``, a folder with ``train`` or an ``.npz`` with ``classes``.

        Raises :class:`GradscopeError` if classes or image size are not those of the set.
        """
        splits = self._read_npz(path) if path.is_file() else self._read_folder(path, cache)
        shape, expected = tuple(splits.train.images.shape[1:]), (3, self.side, self.side)
        if shape != expected:
            raise GradscopeError(f"data_root: {path}: images of {self.name} must be {expected}, got {shape}")
        return splits

    def _read_folder(self, root: Path, cache: Path | None) -> Splits:
        train, annotations = root / "train", root / "val" / _VAL_ANNOTATIONS
        annotated = annotations.is_file()
        test = annotations.parent if annotated else split_folder(root, "test", "val")
        for folder in (train,) if self.classes is None else (train, test):
            self._check_classes(f"the folders in {folder}", class_folders(folder))
        tree = Tree(train, test, None, self.side, resize=False, annotations=annotations if annotated else None)
        return load_tree(self.name, tree, cache)

    def _read_npz(self, path: Path) -> Splits:
        splits = read_npz(path, names_required=True)
        self._check_classes(f"the array classes in {path}", splits.train.classes)
        return Splits(*(self._in_order(images) for images in (splits.train, splits.test)))

    def _check_classes(self, where: str, names: Sequence[str]) -> None:
        if self.classes is None:
            if len(names) > self.class_count or len(set(names)) < len(names):
                raise GradscopeError(
                    f"data_root: {where} must be at most {self.class_count} classes, each once, got {len(names)}"
                )
        elif sorted(names) != list(self.classes):
            missing = [name for name in self.classes if name not in names]
            unknown = [name for name in names if name not in self.classes]
            differences = "".join(
                f"; {word}: {first_of(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names
            )
            raise GradscopeError(
                f"data_root: {where} must be the {self.class_count} classes of {self.name}, "
                f"got {len(names)}{differences}"
            )

    def _in_order(self, images: ImageSet) -> ImageSet:
        """Rename the set and sort its classes alphabetically; if they were not sorted, sort the images by class."""
        classes = sorted(images.classes)
        if classes == list(images.classes):
            return replace(images, name=self.name)
        labels = torch.tensor([classes.index(name) for name in images.classes])[images.labels]
        order = labels.argsort(stable=True)
        return ImageSet.from_tensors(self.name, images.images[order], labels[order], classes)


_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR10 = Published("cifar10", 32, 10, tuple(_CIFAR10_CLASSES.split()))
CIFAR100 = Published("cifar100", 32, 100, tuple(_CIFAR100_CLASSES.split()))
TINY_IMAGENET = Published("tiny-imagenet", 64, 200)
