"""What the text of a model means, and which mistakes are refused before anything is loaded."""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gradscope.errors import GradscopeError
from gradscope.models.references import check_references, parse_reference


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module, files of tensors, and files that are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    (tmp_path / "theirs.py").write_text("open('ran', 'w').close()\ndef make(*sizes): ...\n")
    for name in ("a.pt", "b.pt", "w.pt"):
        torch.save({}, tmp_path / name)
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-40])
    (tmp_path / "text.pt").write_text("{}\n")
    (tmp_path / "text.safetensors").write_text("no such thing")
    safetensors.torch.save_file({"a": torch.zeros(9)}, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:20])
    np.savez(tmp_path / "arrays.npz", a=[1])
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # as TorchScript's are
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/constants.pkl", b"")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("torchvision:resnet18", "library"),
        ("timm:vit_tiny.a-b", "library"),
        ("timm:", "library"),
        ("timm:create_model('vit_tiny')", "factory"),
        ("a.b:make", "factory"),
        ("a:b", "factory"),
        ("é.x:y", "factory"),
        ("transformers:AutoModel.from_pretrained('microsoft/resnet-50')", "factory"),
        ("model.pt", "file"),
        ("runs/a.pt", "file"),
        ("runs/a:b.pt", "file"),
        ("runs:best.pt", "file"),
        ("a.b", "file"),
        ("a:", "file"),
        (":b", "file"),
        ("a:b:c", "file"),
        ("http://host/a.pt", "file"),
        ("C:\\a.pt", "file"),
        ("x" * 5000, "file"),
        ("", "file"),
    ],
)
def test_the_form_tells_the_kind(text: str, kind: str) -> None:
    assert parse_reference(text).kind == kind


def test_an_existing_file_is_that_file(project: Path) -> None:
    for name in ("runs:best", "timm:mine"):
        (project / name).touch()
        assert not parse_reference(name).is_foreign


def test_arguments_are_read_as_python_reads_them() -> None:
    found = parse_reference("robustbench.utils:load_model('a, b:c)', size=3, eps=-8e-3, names=['x', None], on=True)")
    assert (found.module, found.name) == ("robustbench.utils", "load_model")
    assert found.arguments == ("a, b:c)",)
    assert found.options == {"size": 3, "eps": -8e-3, "names": ["x", None], "on": True}
    assert parse_reference("a:b").arguments == parse_reference("a:b()").arguments == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:b(size=SIZE)", "model must give a factory only literals, such as 'x', 3, True or None, got SIZE in a:b("),
        ("a:b(open('x'))", "got open('x') in a:b(open('x'))"),
        ("a:b(1 + 2)", "got 1 + 2 in"),
        ("a:b(f'{x}')", "got f'{x}' in"),
        ("a:b(*[1])", "got *[1] in"),
        ("a:b(**{'x': 1})", "one by one, got ** in"),
        ("a:b(x=1, x=2)", "model must give each argument of a factory once, got a:b(x=1, x=2)"),
        ("a:b(1", "model must be package.module:factory(...) with one call, got a:b(1"),
        ("a:b(1)(2)", "one call"),
        ("a:b(1) or c", "one call"),
        ("a:b(" + 500 * "(", "one call"),
    ],
)
def test_what_is_no_literal_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(GradscopeError) as raised:
        parse_reference(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_in_order_is_returned_and_no_code_runs(project: Path) -> None:
    texts = ["a.pt", "theirs:make(3)", "torchvision:resnet18"]
    found = check_references(texts, weights=[Path("b.pt"), Path("w.pt")], trust_code=True)
    assert [one.kind for one in found] == ["file", "factory", "library"]
    assert [one.short_name for one in found] == ["a", "make", "resnet18"]
    assert not (project / "ran").exists()


@pytest.mark.parametrize(
    "text", ["def made(): ...", "from os import  *", "globals()['ma' + 'de'] = 1", "def __getattr__(name): ..."]
)
def test_a_factory_that_may_be_there_is_not_missed(project: Path, text: str) -> None:
    (project / "perhaps.py").write_text(f"open('ran', 'w').close()\n{text}\n")
    check_references(["perhaps:made"], trust_code=True)
    assert not (project / "ran").exists()


def test_weights_of_every_form_are_taken(project: Path) -> None:
    torch.save({"a": torch.zeros(9)}, project / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("w.pt", "old.pth", "w.safetensors"):
        check_references(["timm:x"], weights=[Path(name)])


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["no.pt"], {}, "model: no.pt cannot be read: No such file or directory"),
        (["."], {}, "model: . cannot be read: Is a directory"),
        (
            ["hf:user/model"],
            {},
            "model: the prefix of hf:user/model must be torchvision, timm or the module of a",
        ),
        (["theirs:make"], {}, "model: theirs:make runs the code of theirs; pass `trust_code` if you trust it"),
        (["torchvison:resnet18"], {}, "did you mean torchvision:resnet18? pass `trust_code`"),
        (["timm:create_model('x')"], {}, "runs the code of timm; pass `trust_code`"),
        (["nowhere.at:all"], {"trust_code": True}, "nowhere.at cannot be imported: ModuleNotFoundError: No module"),
        (["theirs:make_modle"], {"trust_code": True}, "model: theirs:make_modle: theirs has no make_modle"),
        (["timm:x"], {}, "weights must be given for timm:x, got none; random weights measure nothing"),
        (["timm:x"], {"weights": [Path("no.pt")]}, "weights: no.pt cannot be read: No such file"),
        (
            ["timm:x"],
            {"weights": [Path("w.pt")] * 2},
            "for each foreign model, in order (1), got 2",
        ),
        (["a.pt"], {"weights": [Path("w.pt")]}, "weights must be left out if no model is foreign"),
        (["a.pt"], {"mean": (0.5,), "std": (1.0,)}, "mean must be left out, and `std`, if no model is foreign"),
        (["a.pt"], {"std": (1.0,)}, "mean must be given with `std`, or both be left out"),
        (["a.pt", "b.pt", "./a.pt"], {}, "model must name each model once, got './a.pt' again"),
        (
            ["text.pt"],
            {},
            "model: text.pt must be an undamaged file of tensors that torch.save wrote, got one that begins with b'{",
        ),
        (["cut.pt"], {}, "model: cut.pt is truncated: its end is missing after"),
        (["arrays.npz"], {}, "model: arrays.npz must be an undamaged file of tensors"),
        (["script.pt"], {}, "model: script.pt was refused: it is TorchScript"),
        (["w.safetensors"], {}, "model: w.safetensors must be a gradscope checkpoint; pass other models as"),
        (["timm:x"], {"weights": [Path("text.pt")]}, "weights: text.pt must be an undamaged file of tensors"),
        (
            ["timm:x"],
            {"weights": [Path("text.safetensors")]},
            "weights: text.safetensors must be a whole safeten",
        ),
        (
            ["timm:x"],
            {"weights": [Path("cut.safetensors")]},
            "weights: cut.safetensors must be a whole safetensors file",
        ),
        (["a.pt", "theirs:make(x)"], {"trust_code": True}, "only literals"),
    ],
)
def test_mistakes_are_refused(texts: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(GradscopeError) as raised:
        check_references(texts, **options)  # type: ignore[arg-type]
    assert message in str(raised.value)


@pytest.mark.parametrize("argument", ["model", "weights"])
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_pipe_is_no_model_and_is_not_waited_for(tmp_path: Path, argument: str, name: str) -> None:
    os.mkfifo(tmp_path / name)
    text, weights = ("torchvision:resnet18", [tmp_path / name]) if argument == "weights" else (str(tmp_path / name), [])
    with pytest.raises(GradscopeError, match=rf"^{argument}: .*m\.\w+ cannot be read: it is not a regular file"):
        check_references([text], weights=weights)
