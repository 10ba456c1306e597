"""Naming the models of a command, and making sure that they fit the data."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from gradscope.config import Data
from gradscope.data.image_set import ImageSet
from gradscope.errors import GradscopeError
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.checkpoint import Checkpoint, save
from gradscope.models.loading import Foreign, load_model, read_references
from gradscope.vision import torchvision

CPU = torch.device("cpu")


def write(path: Path, *, channels: int = 3, classes: int = 5, seed: int = 7) -> Path:
    spec = ModelSpec("cnn2", classes, channels, 8, (0.5,) * channels, (0.25,) * channels)
    torch.manual_seed(seed)
    data = {"dataset": "npz", "data_root": "somewhere.npz", "image_size": None}
    checkpoint = Checkpoint(
        spec=spec,
        state_dict=build(spec).state_dict(),
        mode="rl-adv",
        dataset="random",
        classes=tuple("0123456789"[:classes]),
        data_fingerprint="0",
        config={"data": data, "seed": seed},
        history=[],
        provenance={},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, checkpoint)
    return path


def labels(*texts: object, **foreign: object) -> list[str]:
    trusting = Foreign(trust_code=True, **foreign)  # type: ignore[arg-type]
    return [one.label for one in read_references([str(text) for text in texts], trusting)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Two files of weights in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.pt", "y.pt"):
        torch.save({}, name)
    return Path("x.pt"), Path("y.pt")


def refusal(*texts: object, **foreign: object) -> str:
    with pytest.raises(GradscopeError) as raised:
        labels(*texts, **foreign)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_label_is_as_short_as_it_can_be(tmp_path: Path) -> None:
    first, second, third = (write(tmp_path / name) for name in ("a/sl.pt", "b/sl.pt", "b/rl.v2.pt"))
    assert labels(first) == ["sl"]
    assert labels(first, third) == ["sl", "rl.v2"]
    assert labels(first, second, third) == [str(first), str(second), "rl.v2"]
    assert labels("os:a", "sys:a(1)") == ["os:a", "sys:a(1)"]


def test_the_same_model_twice_is_refused_however_it_is_written(tmp_path: Path, files: tuple[Path, ...]) -> None:
    write(tmp_path / "sl.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "sl.pt")
    for again in ("sl.pt", "./sl.pt", tmp_path / "sl.pt", "link.pt"):
        assert refusal("sl.pt", again) == f"model must name each model once, got {str(again)!r} again"
    assert "again" in refusal("os:b", "os:b")
    assert "again" in refusal("os:b", "os:b", weights=(files[0], tmp_path / files[0]))


def test_weights_go_to_the_foreign_models_in_order(tmp_path: Path, files: tuple[Path, ...]) -> None:
    ours = str(write(tmp_path / "sl.pt"))
    trusting = Foreign(files, trust_code=True)
    found = read_references(["os:b", ours, "sys:d"], trusting)
    assert [one.weights for one in found] == [files[0], None, files[1]]
    assert [one.checkpoint is None for one in found] == [True, False, True]
    twins = read_references(["os:b", "os:b"], trusting)
    assert [(one.label, one.weights) for one in twins] == [("os:b@x.pt", files[0]), ("os:b@y.pt", files[1])]
    assert [one.weights for one in read_references(["os:b"], Foreign(trust_code=True))] == [None]


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_weights_is_refused(count: int) -> None:
    message = refusal("os:b", "sys:d", weights=(Path("x.pt"),) * count)
    assert message == f"weights must be one file for each foreign model, in order (2), got {count}"


def test_normalisation_is_for_foreign_models(tmp_path: Path) -> None:
    ours = write(tmp_path / "sl.pt")
    assert refusal(ours, mean=(0.5,), std=(0.5,)).startswith("mean must be left out, and `std`")
    assert labels(ours, "os:b", mean=(0.5,), std=(0.5,)) == ["sl", "os:b"]


def test_a_checkpoint_knows_its_data(tmp_path: Path) -> None:
    ours, theirs = read_references([str(write(tmp_path / "sl.pt")), "os:b"], Foreign(trust_code=True))
    assert ours.data == Data(dataset="npz", data_root=Path("somewhere.npz"))
    assert theirs.data is None


def test_our_checkpoint_becomes_a_model_with_its_names(tmp_path: Path, image_set: ImageSet) -> None:
    (reference,) = read_references([str(write(tmp_path / "mine.pt", seed=9))], Foreign())
    subject = load_model(reference, image_set, Foreign(), CPU)
    assert subject.identity("random", "pgd") == {
        "checkpoint": "mine",
        "mode": "rl-adv",
        "dataset": "random",
        "arch": "cnn2",
        "seed": 9,
        "attack": "pgd",
    }
    assert not subject.model.training
    assert reference.checkpoint is not None
    for name, value in subject.model.state_dict().items():
        assert torch.equal(value, reference.checkpoint.state_dict[name])
    images, _ = image_set.batch(torch.arange(4), "cpu")
    assert subject.model(images).shape == (4, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 1}, "model: mine takes images of 1 channel, random has 3"),
        ({"channels": 2}, "model: mine takes images of 2 channels, random has 3"),
        ({"classes": 10}, "model: mine must have the 5 classes of random, got 10"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, image_set: ImageSet, options: dict[str, int], words: str
) -> None:
    (reference,) = read_references([str(write(tmp_path / "mine.pt", **options))], Foreign())
    with pytest.raises(GradscopeError) as raised:
        load_model(reference, image_set, Foreign(), CPU)
    assert str(raised.value) == words


def test_a_foreign_model_has_its_weights_and_the_users_normalisation(tmp_path: Path, image_set: ImageSet) -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.squeezenet1_1(num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    enlarged = ImageSet.from_tensors(
        "large", image_set.images.repeat_interleave(8, 2).repeat_interleave(8, 3), image_set.labels, image_set.classes
    )
    foreign = Foreign((tmp_path / "w.pt",), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    (reference,) = read_references(["torchvision:squeezenet1_1"], foreign)
    subject = load_model(reference, enlarged, foreign, CPU)
    assert (subject.mode, subject.architecture, subject.seed) == ("foreign", "squeezenet1_1", None)
    images, _ = enlarged.batch(torch.arange(3), "cpu")
    mean, std = (torch.tensor(values)[:, None, None] for values in (foreign.mean, foreign.std))
    with torch.no_grad():
        torch.testing.assert_close(subject.model(images), theirs.eval()((images - mean) / std))


def test_a_foreign_model_may_return_an_object_with_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_set: ImageSet
) -> None:
    (tmp_path / "faces.py").write_text(
        "from types import SimpleNamespace\nfrom torch import nn\n\n"
        "class Face(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))\n"
        "    def forward(self, images):\n"
        "        return SimpleNamespace(logits=self.inner(images))\n"
    )
    monkeypatch.chdir(tmp_path)
    foreign = Foreign(mean=(0.5,), std=(0.25,), trust_code=True)
    (reference,) = read_references(["faces:Face()"], foreign)
    model = load_model(reference, image_set, foreign, CPU).model
    images, _ = image_set.batch(torch.arange(3), "cpu")
    inner = model.get_submodule("network.network.inner")
    assert torch.equal(model(images), inner((images - 0.5) / 0.25))
    assert not any(module.training for module in model.modules())


def test_reading_and_loading_leave_the_random_state_alone(tmp_path: Path, image_set: ImageSet) -> None:
    path = write(tmp_path / "mine.pt")
    before = torch.get_rng_state()
    (reference,) = read_references([str(path)], Foreign())
    first, second = (load_model(reference, image_set, Foreign(), CPU).model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    nn.init.zeros_(next(first.parameters()))
    assert not torch.equal(next(first.parameters()), next(second.parameters())), "two subjects share their weights"


def test_class_names_in_another_order_are_refused(tmp_path: Path, image_set: ImageSet) -> None:
    renamed = dataclasses.replace(image_set, classes=("0", "2", "1", "3", "4"))
    reference = read_references([str(write(tmp_path / "mine.pt"))], Foreign())[0]
    with pytest.raises(GradscopeError, match="mine has '1' as class 1, random has '2'; pass `ignore_class_names`"):
        load_model(reference, renamed, Foreign(), torch.device("cpu"))
    load_model(reference, renamed, Foreign(ignore_class_names=True), torch.device("cpu"))
