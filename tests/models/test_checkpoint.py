"""Checkpoints come back bit for bit, and no file of anyone's runs code or passes for what it is not."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.errors import GradscopeError
from gradscope.models import checkpoint as checkpoints
from gradscope.models.architectures import ModelSpec, build
from gradscope.models.checkpoint import Checkpoint, load, load_strictly, load_weights_only, save

SPEC = ModelSpec("cnn2", classes=3, channels=1, image_size=4, mean=(0.3,), std=(0.4,))


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        spec=SPEC,
        state_dict=dict(build(SPEC).state_dict()),
        mode="sl",
        dataset="digits",
        classes=("zero", "one", "two"),
        data_fingerprint="abc",
        config={"mode": "sl", "phases": [{"epochs": 2, "adversary": None}], "radius": 1e-300},
        history=[{"epoch": 0, "loss": float("nan"), "best": True}, {"epoch": 1, "loss": 0.1, "best": False}],
        provenance={"packages": {"torch": torch.__version__ + ""}},
    )


@pytest.fixture
def file(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    path = tmp_path / "model.pt"
    save(path, checkpoint)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(GradscopeError) as raised:
        load(path)
    message = str(raised.value)
    assert "\n" not in message
    assert "weights_only" not in message
    assert message.startswith("model: ")
    return message


def test_round_trip_is_equal_to_the_bit(file: Path, checkpoint: Checkpoint) -> None:
    read = load(file)
    assert list(read.state_dict) == list(checkpoint.state_dict)
    assert all(torch.equal(read.state_dict[key], value) for key, value in checkpoint.state_dict.items())
    assert repr(replace(read, state_dict={})) == repr(replace(checkpoint, state_dict={}))
    assert [child.name for child in file.parent.iterdir()] == ["model.pt"]


def test_equal_checkpoints_are_equal_files(file: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(tmp_path / "other name.pt", checkpoint)
    assert (tmp_path / "other name.pt").read_bytes() == file.read_bytes()


def test_build_gives_the_same_logits_and_draws_nothing(checkpoint: Checkpoint) -> None:
    model = build(SPEC)
    model.load_state_dict(checkpoint.state_dict)
    before = torch.get_rng_state()
    built = checkpoint.build()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in built.modules())
    images = torch.rand(5, 1, 4, 4)
    assert torch.equal(built(images), model(images))
    with torch.no_grad():
        next(built.parameters()).zero_()
    assert next(iter(checkpoint.state_dict.values())).any()


def test_a_view_is_saved_without_the_memory_behind_it(tmp_path: Path, checkpoint: Checkpoint) -> None:
    behind = torch.zeros(1_000_000)
    save(tmp_path / "view.pt", replace(checkpoint, state_dict={"weight": behind[:3].requires_grad_()}))
    assert (tmp_path / "view.pt").stat().st_size < 20_000
    assert not load(tmp_path / "view.pt").state_dict["weight"].requires_grad


@pytest.mark.parametrize("value", [np.float64(0.5), np.int64(3), torch.ones(1), Path("x"), {1, 2}, object()])
def test_only_plain_types_are_saved(tmp_path: Path, checkpoint: Checkpoint, value: object) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['history'\]\[0\]\['loss'\]"):
        save(tmp_path / "model.pt", replace(checkpoint, history=[{"loss": value}]))
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(file: Path, checkpoint: Checkpoint) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError):
        save(file, replace(checkpoint, config={"value": object()}))
    with pytest.raises(AttributeError):
        save(file, replace(checkpoint, state_dict={"weight": None}))  # type: ignore[dict-item]
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 1


def test_truncated_at_any_length_is_named_so(file: Path) -> None:
    content = file.read_bytes()
    lengths = {1, 2, 3, 4, 5, 30, 64, 1000, len(content) // 2, *range(len(content) - 120, len(content))}
    for length in sorted(lengths):
        file.write_bytes(content[:length])
        assert f"is truncated: its end is missing after {length} bytes" in complaint(file)
    file.write_bytes(content)
    load(file)


def test_a_legacy_file_truncated(tmp_path: Path) -> None:
    path = tmp_path / "legacy.pt"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for length in (4, 10, 30, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "is truncated" in complaint(path)


def test_empty_missing_and_directory(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    assert "is truncated: it is empty" in complaint(tmp_path / "empty.pt")
    assert "cannot be read: No such file" in complaint(tmp_path / "nothing.pt")
    assert "cannot be read: Is a directory" in complaint(tmp_path)


def test_a_flipped_bit_in_a_weight_is_found(file: Path) -> None:
    """torch.load reads past it, which is the point."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda each: each.file_size)
    content[entry.header_offset + 1000] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)
    assert f"is damaged: the checksum of {entry.filename} is wrong" in complaint(file)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "new pickle", "inside a checkpoint"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, file: Path, kind: str) -> None:
    target = tmp_path / "written"
    path = tmp_path / "malicious.pt"
    bomb = {"state_dict": Malicious(target)}
    if kind == "inside a checkpoint":
        torch.save(torch.load(file, weights_only=True) | bomb, path)
    elif "pickle" in kind:
        path.write_bytes(pickle.dumps(bomb, protocol=4 if kind == "new pickle" else 2))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=kind == "zip")
    message = complaint(path)
    assert not target.exists()
    if kind == "new pickle":
        assert "must be an undamaged file of tensors that torch.save wrote" in message
    else:
        assert (
            f"needs the code of {os.system.__module__}.system, and gradscope never runs code from a checkpoint"
            in message
        )
    pickle.loads(pickle.dumps(bomb))
    assert target.exists()


def test_a_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "needs the code of torch.nn.modules.linear.Linear, and" in complaint(tmp_path / "module.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    assert "it is TorchScript" in complaint(tmp_path / "script.pt")


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"hello world\n", b"\x00" * 50, b"{}"])
def test_what_is_no_torch_file_shows_how_it_begins(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.pt").write_bytes(content)
    assert complaint(tmp_path / "page.pt").endswith(f"got one that begins with {content[:16]!r}")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    assert "must be an undamaged file of tensors that torch.save wrote" in complaint(tmp_path / "arrays.npz")


@pytest.mark.parametrize("name", ["other.pt", "other.safetensors"])
def test_other_peoples_weights_are_pointed_to_the_right_door(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(nn.Linear(2, 2).state_dict(), path)
    message = complaint(path)
    assert "must be a gradscope checkpoint" in message
    assert f"torchvision:NAME, timm:NAME or package.module:factory with `weights` {path}" in message


def rewrite(path: Path, **changes: object) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def test_a_newer_format(file: Path) -> None:
    newer = checkpoints.FORMAT + 1
    rewrite(file, format=newer, spec=None)
    assert f"must be of format {checkpoints.FORMAT} or below, got {newer}" in complaint(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec": {"architecture": "cnn2"}}, "is damaged: KeyError 'classes'"),
        ({"spec": None}, "is damaged: TypeError"),
        ({"spec": SPEC.to_dict() | {"image_size": "four"}}, "is damaged: ValueError"),
        ({"state_dict": {"weight": 1}}, "is damaged: TypeError state_dict"),
        ({"state_dict": {"weight": torch.ones(1).expand(2**40)}}, "is damaged: TypeError state_dict"),
        ({"state_dict": {"weight": torch.ones(1, device="meta")}}, "is damaged: TypeError state_dict"),
        ({"spec": SPEC.to_dict() | {"classes": float("inf")}}, "is damaged: OverflowError"),
        ({"history": 3}, "is damaged: TypeError history must be of type list"),
        ({"history": [1]}, "is damaged: TypeError each of history must be of type dict"),
        ({"classes": [1, 2, 3]}, "is damaged: TypeError each of classes must be of type str"),
        ({"config": [1]}, "is damaged: TypeError config must be of type dict"),
        ({"config": {"phases": [{"epochs": "two"}]}}, "is damaged: TypeError epochs must be of type int"),
        (
            {"provenance": {"packages": {"torch": 2}}},
            "is damaged: TypeError provenance.packages.torch: Input should be",
        ),
        (
            {"config": {"selection": torch.ones(1)}},
            "is damaged: TypeError checkpoint['config']['selection'] must be None, bool",
        ),
        ({"config": {"data": 1}}, "is damaged: TypeError data must be of type dict"),
        ({"spec": SPEC.to_dict() | {"architecture": "cnn7"}}, "cannot be used: architecture: 'cnn7' is unknown"),
    ],
)
def test_damaged_contents(file: Path, changes: dict[str, object], words: str) -> None:
    rewrite(file, **changes)
    assert words in complaint(file)


@pytest.mark.parametrize("damage", [{"classes": 2**40}, {"classes": 2**62}, {"image_size": 2**18}, {"channels": 2**36}])
def test_a_specification_that_asks_for_gigabytes_is_refused_unbuilt(damage: dict[str, int], file: Path) -> None:
    rewrite(file, spec=SPEC.to_dict() | damage)
    with pytest.raises(GradscopeError, match=r"^model: the checkpoint's weights do not fit cnn2: [^\n]+$"):
        load(file).build()


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_never_ends_is_refused_unread(put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path / "a.pt")
    assert complaint(tmp_path / "a.pt") == f"model: {tmp_path / 'a.pt'} cannot be read: it is not a regular file"


def test_a_full_disk_is_one_line(file: Path) -> None:
    before = file.read_bytes()
    script = """
import resource, sys, torch
from pathlib import Path
from gradscope.models.checkpoint import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_tensors(Path(sys.argv[1]), torch.rand(100_000))
"""
    ended = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1].endswith(f"GradscopeError: out: {file} cannot be written: File too large")
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_checkpoint_in_the_old_container_is_damaged(file: Path) -> None:
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    assert "is damaged: the checksum of the archive is wrong" in complaint(file)


def test_weights_that_do_not_fit_their_own_specification(checkpoint: Checkpoint) -> None:
    state = dict(checkpoint.state_dict)
    del state["network.0.bias"]
    wrong = replace(checkpoint, state_dict={**state, "extra": torch.ones(1), "network.8.bias": torch.ones(4)})
    with pytest.raises(GradscopeError) as raised:
        wrong.build()
    assert str(raised.value) == (
        "model: the checkpoint's weights do not fit cnn2: 1 missing (first network.0.bias), 1 unexpected "
        "(first extra), 1 of other shape (first network.8.bias: file (4,), model (3,))"
    )


def test_load_strictly_lets_only_the_batch_counter_be_missing() -> None:
    model = nn.BatchNorm1d(2)
    state = {
        "weight": torch.ones(2),
        "bias": torch.ones(2),
        "running_mean": torch.ones(2),
        "running_var": torch.ones(2),
    }
    load_strictly(model, state, "no")
    assert model.running_mean.tolist() == [1.0, 1.0]
    assert set(state) == {"weight", "bias", "running_mean", "running_var"}
    del state["running_var"]
    with pytest.raises(GradscopeError, match=r"no: 1 missing \(first running_var\)"):
        load_strictly(model, state, "no")


def test_argument_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"^weights: "):
        load_weights_only(tmp_path / "nothing.pt", "weights")


def test_a_fingerprint_is_of_what_a_checkpoint_is(checkpoint: Checkpoint) -> None:
    one = checkpoint
    again = replace(one, provenance={"time": "later"}, history=[row | {"seconds": 9.0} for row in one.history])
    assert again.fingerprint == one.fingerprint
    moved = one.config | {"data": {"dataset": "digits", "data_root": "/elsewhere"}}
    here = one.config | {"data": {"dataset": "digits", "data_root": "/here"}}
    assert replace(one, config=moved).fingerprint == replace(one, config=here).fingerprint
    name = next(iter(one.state_dict))
    weights = {key: value.clone() for key, value in one.state_dict.items()}
    weights[name].view(-1)[0] += 1e-7
    for other in (
        replace(one, state_dict=weights),
        replace(one, mode="other"),
        replace(one, history=[*one.history, {}]),
        replace(one, data_fingerprint="other"),
        replace(one, config=one.config | {"seed": 99}),
    ):
        assert other.fingerprint != one.fingerprint
