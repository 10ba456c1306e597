"""Every run on the stand-in device writes the CPU's files; mistakes that only a GPU would show make it fail."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gradscope import functional
from gradscope.attacks import transfer
from gradscope.attacks.pgd import Streams
from gradscope.attacks.threat import ThreatModel
from gradscope.auditing import gradients
from gradscope.data import augment
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.measure import ways
from gradscope.probes import curvature, input_landscape
from gradscope.seeding import generator
from gradscope.training import batches, held_out, loop
from tests.standin.device import DeviceError, stand_in
from tests.standin.walks import MEASUREMENTS, TRAININGS, reduced
from tests.study.contents import content

WALKS = TRAININGS | MEASUREMENTS


@pytest.fixture(scope="module", autouse=True)
def _reduced() -> Iterator[None]:
    with reduced():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of all trainings on the CPU, one folder each."""
    root = tmp_path_factory.mktemp("trained")
    for name, walk in TRAININGS.items():
        walk(folder(root / name))
    return root


@pytest.fixture(scope="module")
def on_cpu(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The content of a walk's files on the CPU; each walk runs once."""
    root = tmp_path_factory.mktemp("cpu")

    def files(name: str) -> dict[str, str]:
        if name in TRAININGS:
            return content(trained / name)
        if not (root / name).exists():
            WALKS[name](folder(root / name))
        return content(root / name)

    return files


@pytest.fixture(autouse=True)
def _among_the_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", WALKS)
def test_the_device_writes_the_files_of_the_cpu(name, on_cpu, tmp_path):
    with stand_in() as device:
        WALKS[name](tmp_path)
    assert device.copies["copy to the device"] > 0
    found = content(tmp_path)
    assert found
    assert found == on_cpu(name)


def left_on_the_cpu(original):
    return lambda *given, **options: tree_map(Tensor.cpu, original(*given, **options))


def made_on_the_cpu(original):
    """Multiply by a tensor made without a device."""

    def mistaken(*given, **options):
        result = original(*given, **options)
        return result * torch.ones(result.shape, dtype=result.dtype)

    return mistaken


def never_moved(original):
    return lambda draws, *_: draws


def drawn_by_the_cpu(original):
    return lambda *given, **options: original(*given, **options).random_(2, generator=generator(0, "mistaken"))


def through_numpy(original):
    return lambda *given, **options: torch.from_numpy(original(*given, **options).numpy())


#: The walk that must fail, the function that is replaced, the mistake, and what the error says.
MISTAKES = {
    "a tensor in a metric": ("analysis", functional, "margin", made_on_the_cpu, "same device"),
    "a tensor in an attack": ("attacks linf", ThreatModel, "steepest_step", made_on_the_cpu, "same device"),
    "the direction of a probe": ("input landscape", input_landscape, "_random_units", left_on_the_cpu, "same device"),
    "a direction of the weights": ("line", ways, "direction_towards", left_on_the_cpu, "same device"),
    "a curvature that the audit gives up": ("audit", curvature, "_product", left_on_the_cpu, "caught.*same device"),
    "what transfer judges": ("transfer", transfer, "fooled", made_on_the_cpu, "same device"),
    "the draws of training": ("rl", batches, "sent", never_moved, "same device"),
    "a generator in an attack": ("attacks linf", Streams, "gaussian", drawn_by_the_cpu, "generator"),
    "a generator in training": ("sl", augment, "apply", drawn_by_the_cpu, "generator"),
    "an array in a metric": ("analysis", functional, "entropy", through_numpy, "numpy"),
    "an array in an audit": ("audit", gradients, "is_dead", through_numpy, "numpy"),
    "an array in training": ("sl", held_out, "cross_entropy", through_numpy, "numpy"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_that_passes_on_the_cpu_fails_on_the_device(name, tmp_path, monkeypatch):
    walk, owner, attribute, mistake, message = MISTAKES[name]
    monkeypatch.setattr(owner, attribute, mistake(getattr(owner, attribute)))
    WALKS[walk](folder(tmp_path / "cpu"))
    with pytest.raises((DeviceError, TypeError, GradscopeError), match=message), stand_in():
        WALKS[walk](folder(tmp_path / "device"))


def test_other_numbers_on_the_device_change_the_files(on_cpu, tmp_path, monkeypatch):
    def reciprocal(images, indices, device):  # one rounding off, as CUDA divides by a Python number
        raw, labels = images.raw_batch(indices, device)
        return raw.float() * (1 / 255) if torch.device(device).type != "cpu" else raw.float() / 255, labels

    monkeypatch.setattr(ImageSet, "batch", reciprocal)
    WALKS["analysis"](folder(tmp_path / "cpu"))
    assert content(tmp_path / "cpu") == on_cpu("analysis")
    with stand_in():
        WALKS["analysis"](folder(tmp_path / "device"))
    assert content(tmp_path / "device") != on_cpu("analysis")


@pytest.mark.parametrize("name", ["sl", "rl", "rl-adv"])
def test_an_update_never_waits_for_the_device(name, tmp_path, monkeypatch):
    update, moved = loop.Run._update, []

    def counted(run, *given):
        before = device.copies.total() + device.synchronisations.total()
        update(run, *given)
        moved.append(device.copies.total() + device.synchronisations.total() - before)

    monkeypatch.setattr(loop.Run, "_update", counted)
    with stand_in() as device:
        WALKS[name](tmp_path)
    assert len(moved) > 2
    assert set(moved) == {0}
