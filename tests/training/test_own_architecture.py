"""A user's own architecture: trained in every mode, resumed, kept, and never run without trust."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradscope.config import Data, Training
from gradscope.data import sources
from gradscope.data.image_set import ImageSet, Splits
from gradscope.distributed.processes import Hardware
from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.models.checkpoint import Checkpoint
from gradscope.models.loading import Foreign, load_model, read_references
from gradscope.models.names import check_architecture, is_own, short_name
from gradscope.training.loop import train
from gradscope.training.phases import MODES, resolve
from gradscope.training.runs import run_training
from gradscope.training.state import RunState

CPU = Hardware("cpu")
NETS = """
from pathlib import Path
from types import SimpleNamespace
from torch import nn
Path("ran").touch()

def small(num_classes, width=8, bias=True):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, num_classes, bias=bias),
    )

def fixed():
    return small(7)

def frozen():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)

class Face(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.inner = small(num_classes)
    def forward(self, images):
        return SimpleNamespace(logits=self.inner(images))

def broken():
    raise RuntimeError("no luck")

class Late(Face):
    def __init__(self, kind):
        super().__init__(10)
        self.kind = kind
    def forward(self, images):
        if self.training and self.kind == "exit":
            raise SystemExit(0)
        logits = self.inner(images)
        return (logits, logits) if self.training else logits

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of architectures."""
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return sources.load(Data()).train.subset(torch.arange(200))


def configure(
    architecture: str = "my_nets:small(width=6)", mode: str = "sl", epochs: int = 2, **options: object
) -> Training:
    return resolve(mode, Data(), 8, epochs=epochs, options={"architecture": architecture, **options})


def same_weights(first: Checkpoint, second: Checkpoint) -> bool:
    return all(torch.equal(value, second.state_dict[name]) for name, value in first.state_dict.items())


@pytest.mark.parametrize("mode", MODES)
def test_it_is_trained_in_every_mode_and_built_again(project: Path, digits: ImageSet, mode: str) -> None:
    trained = train(configure(mode=mode), digits, project / "own.pt", CPU, trust_code=True)
    assert trained.spec.architecture == trained.config["architecture"] == "my_nets:small(width=6)"
    loaded = checkpoints.load(project / "own.pt", trust_code=True)
    assert loaded.fingerprint == trained.fingerprint
    images, _ = digits.batch(torch.arange(5), "cpu")
    model = loaded.build()
    assert model.network[0].out_channels == 6
    with torch.no_grad():
        assert torch.equal(model(images), model.network(images)), "the images are shown to it as they are"
        assert torch.equal(model(images), trained.build()(images))


def test_it_learns(project: Path, digits: ImageSet) -> None:
    trained = train(configure(epochs=12, batch_size=16), digits, project / "own.pt", CPU, trust_code=True)
    assert trained.history[-1]["accuracy"] > 0.8


def test_it_is_resumed_bit_for_bit(project: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    training = configure(mode="rl-adv", epochs=4)
    whole = train(training, digits, project / "whole.pt", CPU, trust_code=True)
    store = RunState._store

    def stop(self: RunState) -> None:
        store(self)
        if self.epochs_done == 2:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "_store", stop)
        with pytest.raises(InterruptedError):
            train(training, digits, project / "parts.pt", CPU, trust_code=True)
    parts = train(training, digits, project / "parts.pt", CPU, trust_code=True, resume=True)
    assert same_weights(whole, parts)


def test_no_code_runs_without_trust(project: Path, digits: ImageSet) -> None:
    with pytest.raises(
        GradscopeError, match=r"architecture: my_nets:small.* runs the code of my_nets; pass `trust_code`"
    ):
        train(configure(), digits, project / "own.pt", CPU)
    assert not (project / "ran").exists()
    train(configure(), digits, project / "own.pt", CPU, trust_code=True)
    (project / "ran").unlink()
    sys.modules.pop("my_nets")
    loaded = checkpoints.load(project / "own.pt")
    assert loaded.config["architecture"] == "my_nets:small(width=6)"
    with pytest.raises(GradscopeError, match="runs the code of my_nets; pass `trust_code`"):
        loaded.build()
    untrusted = read_references(["own.pt"], Foreign())[0]
    refusal = r"^model: own\.pt: my_nets:small\(width=6\) runs the code of my_nets; pass `trust_code`"
    with pytest.raises(GradscopeError, match=refusal):
        load_model(untrusted, digits, Foreign(), torch.device("cpu"))
    assert not (project / "ran").exists()
    trusted = read_references(["own.pt"], Foreign(trust_code=True))[0]
    assert load_model(trusted, digits, Foreign(), torch.device("cpu")).architecture == "my_nets:small(width=6)"


def test_trust_is_not_kept_in_the_file(project: Path, digits: ImageSet) -> None:
    trained = train(configure(epochs=1), digits, project / "own.pt", CPU, trust_code=True)
    checkpoints.save(project / "again.pt", trained)
    checkpoints.save(project / "other.pt", replace(trained, trust_code=False))
    assert (project / "again.pt").read_bytes() == (project / "other.pt").read_bytes()
    assert not checkpoints.load(project / "again.pt").trust_code


def test_images_need_not_be_square(project: Path, digits: ImageSet) -> None:
    wide = ImageSet.from_tensors("wide", digits.images[:, :, :6].contiguous(), digits.labels, digits.classes)
    train(configure(epochs=1), wide, project / "own.pt", CPU, trust_code=True)
    loaded = checkpoints.load(project / "own.pt", trust_code=True)
    assert loaded.spec.image_size == (6, 8)
    assert loaded.build()(wide.batch(torch.arange(2), "cpu")[0]).shape == (2, 10)
    with pytest.raises(GradscopeError, match="image_size must be square for cnn2, got 6 x 8"):
        train(configure("cnn2"), wide, project / "square.pt", CPU)


def test_weights_of_other_code_do_not_fit(project: Path, digits: ImageSet) -> None:
    train(configure(epochs=1), digits, project / "own.pt", CPU, trust_code=True)
    (project / "my_nets.py").write_text(NETS.replace("bias=bias", "bias=False"))
    sys.modules.pop("my_nets")
    with pytest.raises(GradscopeError, match=r"the checkpoint's weights do not fit my_nets:small.*1 unexpected"):
        checkpoints.load(project / "own.pt", trust_code=True).build()


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("my_nets:fixed", "architecture: my_nets:fixed must have the data's 10 classes, got 7"),
        ("my_nets:frozen", "architecture: my_nets:frozen must have parameters to train, got none"),
        (
            "my_nets:Face",
            "architecture: my_nets:Face must return logits (N, classes), got a SimpleNamespace for 2 images",
        ),
        ("my_nets:broken", "architecture: my_nets:broken cannot be built: RuntimeError: no luck"),
        ("my_nets:small(7)", "architecture: my_nets:small(7) must have the data's 10 classes, got 7"),
        ("my_nets:small(depth=7)", "cannot be built: TypeError: small() got an unexpected keyword argument 'depth'"),
        ("my_nets:lazy", "architecture: my_nets:lazy must have weights, got lazy layers"),
        ("my_nets:smal", "architecture: my_nets:smal: my_nets has no smal"),
        ("my_nests:small", "my_nests cannot be imported: ModuleNotFoundError"),
        ("my_nets:small(N)", "architecture must give a factory only literals, such as 'x', 3, True or None, got N in"),
        ("resnet81", "architecture: 'resnet81' is unknown; did you mean 'resnet18'?"),
        ("torchvision:resnet18", "architecture: 'torchvision:resnet18' is unknown"),
    ],
)
def test_what_cannot_be_trained_is_refused(project: Path, digits: ImageSet, architecture: str, message: str) -> None:
    with pytest.raises(GradscopeError) as raised:
        train(configure(architecture), digits, project / "own.pt", CPU, trust_code=True)
    assert message in str(raised.value)
    assert not (project / "own.pt").exists()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("exit", "failed in its forward pass on a batch of 64: SystemExit: 0"),
        ("tuple", "must return logits (N, classes), got a tuple for 64 images"),
    ],
)
def test_a_failure_in_training_is_told_in_one_line(project: Path, digits: ImageSet, kind: str, told: str) -> None:
    name = f"my_nets:Late({kind!r})"
    with pytest.raises(GradscopeError) as raised:
        run_training(
            configure(name, batch_size=64),
            Splits(digits, digits),
            project / "own.pt",
            CPU,
            resume=False,
            overwrite=False,
            trust_code=True,
        )
    assert str(raised.value).startswith(f"architecture: {name} {told}")


def test_an_architecture_of_torchvision_is_an_own_one(project: Path) -> None:
    colour = ImageSet.from_tensors("colour", torch.randint(0, 256, (20, 3, 32, 32)).byte(), torch.arange(20) % 2)
    text = "torchvision.models:squeezenet1_1(num_classes=2)"
    assert train(configure(text, epochs=1), colour, project / "own.pt", CPU, trust_code=True).spec.architecture == text


def test_names() -> None:
    assert is_own("a.b:make(3)")
    assert not is_own("cnn2")
    assert not is_own("resnet-18")
    assert (short_name("a.b:make(3)"), short_name("cnn2")) == ("make", "cnn2")
    check_architecture("cnn2", trust_code=False)
    with pytest.raises(GradscopeError, match=r"--arch: a\.b:make runs the code of a\.b; pass `trust_code`"):
        check_architecture("a.b:make", trust_code=False, argument="--arch")
