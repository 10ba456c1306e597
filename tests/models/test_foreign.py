"""Other people's models, in the wrappings that they come in."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gradscope.errors import GradscopeError
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.checkpoint import Checkpoint, save
from gradscope.models.foreign import PREFIXES, WRAPPERS, load_foreign
from gradscope.models.references import parse_reference
from gradscope.vision import torchvision

FACTORY = """
import os
from helper import WIDTH
from torch import nn
ran = open(os.path.join(os.path.dirname(__file__), "ran"), "w").close()
number = 3

def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, WIDTH))

def wrapped():
    return nn.Sequential(nn.ModuleDict({"x": nn.Linear(1, 1)}))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = tiny()
    def forward(self, images):
        return self.model(images)

def lazily():
    from later import make
    return make()

def number_of_classes(classes):
    return tiny()

def broken():
    raise ValueError("first line\\nsecond line")

def leaves():
    raise SystemExit(7)

def text():
    return "model"

def sized(bias, *, width=5):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, width))
    nn.init.constant_(model[1].bias, bias)
    return model

class Zoo:
    @classmethod
    def open(cls, name):
        return sized({"half": 0.5}[name])
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory with a module in it."""
    (tmp_path / "theirs.py").write_text(FACTORY)
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    (tmp_path / "later.py").write_text("from theirs import tiny as make\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\ntiny = None\n")
    (tmp_path / "lacking.py").write_text("from no_such_module_anywhere import tiny\n")
    monkeypatch.chdir(tmp_path)
    for name in ("theirs", "helper", "later", "script", "lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def foreign(
    reference: str = "theirs:tiny",
    weights: Path | None = None,
    *,
    classes: int | None = 5,
    channels: int = 1,
    image_size: int = 4,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    trust_code: bool = True,
) -> nn.Module:
    return load_foreign(
        parse_reference(reference),
        weights=weights,
        classes=classes,
        channels=channels,
        size=(image_size, image_size),
        mean=mean,
        std=std,
        trust_code=trust_code,
    )


def complaint(*arguments: object, **options: object) -> str:
    with pytest.raises(GradscopeError) as raised:
        foreign(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


def linear_state() -> dict[str, Tensor]:
    return {"1.weight": torch.arange(80.0).reshape(5, 16), "1.bias": torch.arange(5.0)}


def fits(model: nn.Module) -> bool:
    state = linear_state()
    return torch.equal(model(torch.ones(2, 1, 4, 4))[0], state["1.weight"].sum(1) + state["1.bias"])


def test_code_runs_only_when_trusted(project: Path) -> None:
    message = complaint(trust_code=False)
    assert message == "model: theirs:tiny runs the code of theirs; pass `trust_code` if you trust it"
    assert not (project / "ran").exists()
    path = list(sys.path)
    before = torch.get_rng_state()
    model = foreign()
    assert (project / "ran").exists()
    assert not model.training
    assert sys.path == path
    assert torch.equal(torch.get_rng_state(), before)


def test_a_factory_may_import_while_it_runs(project: Path) -> None:
    assert isinstance(foreign("theirs:lazily"), nn.Sequential)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nowhere:tiny", "nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("lacking:tiny", "lacking cannot be imported: ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("script:tiny", "script cannot be imported: SystemExit: 3"),
        ("theirs:tinny", "theirs has no tinny"),
        ("theirs:number", "theirs must hold a function, got another object: number"),
        ("theirs:broken", "theirs:broken cannot be built: ValueError: first line"),
        ("theirs:leaves", "theirs:leaves cannot be built: SystemExit: 7"),
        ("theirs:text", "theirs:text must return a torch.nn.Module, got str"),
        ("theirs:number_of_classes", "cannot be built: TypeError: number_of_classes() missing 1 required positional"),
    ],
)
def test_factories_that_fail(project: Path, reference: str, words: str) -> None:
    path = list(sys.path)
    message = complaint(reference)
    assert message.startswith(f"model: {reference}")
    assert words in message
    assert sys.path == path


def test_a_factory_takes_literal_arguments(project: Path) -> None:
    black = torch.zeros(1, 1, 4, 4)
    assert foreign("theirs:sized(-2, width=7)")(black).tolist() == [[-2.0] * 7]
    assert foreign("theirs:Zoo.open('half')")(black).tolist() == [[0.5] * 5]
    assert complaint("theirs:sized(depth=2)").startswith("model: theirs:sized(depth=2) cannot be built: TypeError")
    assert "theirs has no Zoo.shut" in complaint("theirs:Zoo.shut()")


def test_normalisation_is_put_in_front(project: Path) -> None:
    torch.save(linear_state(), project / "weights.pt")
    model = foreign(weights=project / "weights.pt", mean=(0.5,), std=(0.25,))
    plain = foreign(weights=project / "weights.pt")
    images = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(model(images), plain((images - 0.5) / 0.25))
    assert not any(module.training for module in model.modules())


def test_normalisation_that_makes_no_sense(project: Path) -> None:
    assert complaint(mean=(0.5,)) == "std must be given with `mean`, or both be left out; got None"
    assert complaint(std=(0.5,)) == "mean must be given with `std`, or both be left out; got None"
    assert complaint(mean=(0.5, 0.5), std=(1.0,)) == "mean must be one number, as there is one channel, got 2 numbers"
    assert complaint(mean=(0.5,), std=(0.0,)) == "std must be above 0, got [0.0]"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_keys(project: Path, wrapper: str) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, wrapper: linear_state()}, project / "w.pt")
    assert fits(foreign(weights=project / "w.pt"))


def test_a_wrapper_in_a_wrapper_beside_a_decoy(project: Path) -> None:
    torch.save({"model": {"name": "tiny"}, "net": {"state_dict": linear_state()}}, project / "w.bin")
    assert fits(foreign(weights=project / "w.bin"))


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.model.", "_orig_mod.module.", "module.module."])
def test_prefixes(project: Path, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in linear_state().items()}, project / "w.pth")
    assert fits(foreign(weights=project / "w.pth"))


def test_real_wrapping_modules(project: Path) -> None:
    model = foreign()
    model.load_state_dict(linear_state())
    wrapped = {"parallel": nn.DataParallel(model), "compiled": torch.compile(model, backend="eager")}
    for name, module in wrapped.items():
        torch.save(module.state_dict(), project / f"{name}.pt")
        assert all(key.startswith(("module.", "_orig_mod.")) for key in module.state_dict())
        assert fits(foreign(weights=project / f"{name}.pt"))


@pytest.mark.parametrize("prefix", ["model.", "module.model."])
def test_a_prefix_that_is_the_models_own_stays(project: Path, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in linear_state().items()}, project / "w.pt")
    assert fits(foreign("theirs:Model", project / "w.pt"))


def test_a_prefix_only_some_keys_have_is_not_stripped(project: Path) -> None:
    state = linear_state()
    torch.save({"module.1.weight": state["1.weight"], "1.bias": state["1.bias"]}, project / "w.pt")
    message = complaint(weights=project / "w.pt")
    assert "1 missing (first 1.weight), 1 unexpected (first module.1.weight)" in message


def test_a_flipped_bit_in_weights_is_found(project: Path) -> None:
    path = project / "w.pt"
    torch.save(linear_state(), path)
    content = bytearray(path.read_bytes())
    content[content.index(linear_state()["1.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert f"weights: {path} is damaged: " in complaint(weights=path)


def test_weights_expanded_to_gigabytes_are_refused(project: Path) -> None:
    torch.save(linear_state() | {"1.bias": torch.ones(1).expand(2**40)}, project / "w.pt")
    assert "must hold dense tensors" in complaint(weights=project / "w.pt")


def test_safetensors(project: Path) -> None:
    path = project / "w.safetensors"
    safetensors.torch.save_file({f"module.{key}": value for key, value in linear_state().items()}, path)
    assert fits(foreign(weights=path))
    content = path.read_bytes()
    for length in (1, 8, 30, len(content) - 1):
        path.write_bytes(content[:length])
        assert "must be a whole safetensors file" in complaint(weights=path)
    path.write_bytes(b"")
    assert "is truncated: it is empty" in complaint(weights=path)
    path.write_bytes(b"<!DOCTYPE html><html>")
    assert "got one that begins with b'<!DOCTYPE html><'" in complaint(weights=path)


def test_weights_that_are_none(project: Path) -> None:
    assert "cannot be read: No such file" in complaint(weights=project / "nothing.pt")
    torch.save({"epoch": 3, "weights": linear_state()}, project / "odd.pt")
    message = complaint(weights=project / "odd.pt")
    assert message.startswith(f"weights: {project}/odd.pt must hold a state dict")
    assert message.endswith("got the keys epoch, weights")
    torch.save([1, 2], project / "list.pt")
    assert complaint(weights=project / "list.pt").endswith("got <class 'list'>")
    torch.save({}, project / "nought.pt")
    assert "must hold a state dict" in complaint(weights=project / "nought.pt")
    torch.save(nn.Linear(2, 2), project / "module.pt")
    assert "needs the code of torch.nn.modules.linear.Linear" in complaint(weights=project / "module.pt")


def test_a_file_that_contains_itself_ends(project: Path) -> None:
    content: dict[str, object] = {"epoch": 1}
    content["state_dict"] = content
    torch.save(content, project / "loop.pt")
    assert "must hold a state dict" in complaint(weights=project / "loop.pt")


def test_torchvision(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pt")
    options = {"classes": 10, "channels": 3, "image_size": 64, "trust_code": False}
    before = torch.get_rng_state()
    model = foreign("torchvision:resnet18", tmp_path / "resnet.pt", **options)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), theirs(images))


def test_torchvision_shape_mismatch_is_one_line_with_both_shapes(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(weights=None, num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    torch.save(theirs.state_dict(), tmp_path / "small.pt")
    assert complaint("torchvision:resnet18", tmp_path / "small.pt", classes=100, channels=3).endswith(
        "does not fit torchvision:resnet18: "
        "3 of other shape (first conv1.weight: file (64, 3, 3, 3), model (64, 3, 7, 7))"
    )


def test_weights_of_other_classes_are_told_so(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None, num_classes=30).state_dict(), tmp_path / "thirty.pt")
    assert complaint("torchvision:resnet18", tmp_path / "thirty.pt", classes=10, channels=3) == (
        f"weights: {tmp_path / 'thirty.pt'} must have the data's 10 classes, got 30; measure it on data of its "
        "classes, or give it another last layer in a package.module:factory"
    )
    model = foreign("torchvision:resnet18", tmp_path / "thirty.pt", classes=None, channels=3, trust_code=False)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 30)


def test_torchvision_vision_transformer_takes_the_datas_image_size(tmp_path: Path) -> None:
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072, num_classes=4
    )
    torch.save(theirs.state_dict(), tmp_path / "vit.pt")
    model = foreign("torchvision:vit_b_16", tmp_path / "vit.pt", classes=4, channels=3, image_size=32)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("torchvision:resnet81", "model: torchvision has no model 'resnet81'; did you mean 'resnet18'? torchvision."),
        ("torchvision:fasterrcnn_resnet50_fpn", "model: torchvision has no model 'fasterrcnn_resnet50_fpn'; "),
        ("torchvision:", "model: torchvision has no model ''; torchvision.models.list_models() lists all "),
    ],
)
def test_unknown_torchvision_names(tmp_path: Path, reference: str, message: str) -> None:
    torch.save(linear_state(), tmp_path / "w.pt")
    assert complaint(reference, tmp_path / "w.pt").startswith(message)


@pytest.mark.parametrize("reference", ["torchvision:resnet18", "timm:resnet18"])
def test_libraries_need_weights(reference: str) -> None:
    message = complaint(reference, trust_code=False)
    assert message == f"weights must be given for {reference}, got none; random weights measure nothing"


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", pretrained=False, num_classes=4, in_chans=1).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pt")
    model = foreign("timm:resnet18", tmp_path / "w.pt", classes=4, image_size=32, trust_code=False)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), theirs(images))
    assert complaint("timm:resnet81", tmp_path / "w.pt").startswith("model: timm has no model 'resnet81'; did you mean")
    assert "has no model 'hf_hub:a/b'" in complaint("timm:hf_hub:a/b", tmp_path / "w.pt")


def test_timm_transformer_takes_the_datas_image_size(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=4, img_size=32)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    model = foreign("timm:vit_tiny_patch16_224", tmp_path / "w.safetensors", classes=4, channels=3, image_size=32)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 4)


def test_timm_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    torch.save(linear_state(), tmp_path / "w.pt")
    assert "needs timm; install it with: pip install 'gradscope[timm]'" in complaint("timm:resnet18", tmp_path / "w.pt")


class TestOurOwnCheckpointAsWeights:
    """It knows its normalisation, so the model gets it; two that differ are a mistake."""

    @pytest.fixture
    def ours(self, tmp_path: Path) -> tuple[Path, nn.Module]:
        mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
        spec = ModelSpec("resnet18", classes=4, channels=3, image_size=64, mean=mean, std=std)
        model = build(spec).eval()
        path = tmp_path / "ours.pt"
        save(path, Checkpoint(spec, model.state_dict(), "sl", "folder", ("a", "b", "c", "d"), "", {}, [], {}))
        return path, model

    @pytest.mark.parametrize("given", [{}, {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}])
    def test_in_a_torchvision_model(self, ours: tuple[Path, nn.Module], given: dict[str, tuple[float, ...]]) -> None:
        path, theirs = ours
        model = foreign("torchvision:resnet18", path, classes=4, channels=3, image_size=64, **given)
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(model(images), theirs(images))

    def test_with_another_normalisation(self, ours: tuple[Path, nn.Module]) -> None:
        options = {"classes": 4, "channels": 3, "image_size": 64, "mean": (0.5,), "std": (0.5,)}
        message = complaint("torchvision:resnet18", ours[0], **options)
        assert message.startswith("mean and std must be those of the weights, (0.4")

    def test_in_a_factory_of_the_very_same_network(self, ours: tuple[Path, nn.Module], project: Path) -> None:
        (project / "theirs.py").write_text(
            "from gradscope.models.architectures import ModelSpec, build\n"
            "def same():\n    return build(ModelSpec('resnet18', 4, 3, 64, (0.0,) * 3, (1.0,) * 3))\n"
        )
        model = foreign("theirs:same", ours[0], classes=4, channels=3, image_size=64)
        assert [name for name, _ in model.named_children()] == ["normalise", "network"]
        torch.testing.assert_close(model.normalise.mean.flatten(), torch.tensor([0.4, 0.5, 0.6]))
