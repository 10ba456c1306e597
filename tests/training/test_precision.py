"""Which precision a run takes, and that a run which has begun keeps its own."""

from pathlib import Path

import pytest
import torch

from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import ImageSet
from gradscope.distributed.processes import Hardware
from gradscope.errors import CannotResumeError, Caution
from gradscope.training import precision
from gradscope.training.loop import train
from gradscope.training.phases import resolve
from gradscope.training.precision import auto_precision, chosen_precision, computes_in_bf16
from gradscope.training.request import state_path
from tests.training.test_loop import InterruptedRunError, interrupt_after

CPU = torch.device("cpu")


@pytest.fixture
def large() -> ImageSet:
    """Sixty digits at 16 x 16 pixels."""
    digits = sources.load(Data()).train.subset(torch.arange(60))
    images = digits.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return ImageSet.from_tensors("large", images, digits.labels, digits.classes)


def has(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(precision, "computes_in_bf16", lambda device: bf16)


def test_the_processor_is_asked_not_timed() -> None:
    """What torch says of the processor is what its kernels are chosen by."""
    listed = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = next((line.split() for line in listed.splitlines() if line.startswith("flags")), [])
    if not flags:
        pytest.skip("this system does not list the processor's flags")
    assert computes_in_bf16(CPU) == ("avx512_bf16" in flags or "amx_tile" in flags)


@pytest.mark.parametrize(("bf16", "side", "expected"), [(True, 32, "bf16"), (True, 8, "32"), (False, 32, "32")])
def test_auto_takes_bf16_where_it_is_fast(
    bf16: bool, side: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, bf16)
    assert auto_precision(CPU, side) == chosen_precision("auto", CPU, side, None) == expected


def test_bf16_without_the_hardware_is_warned_of_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, False)
    with pytest.warns(Caution, match="bf16 is slow here.* 18 images a second in bf16 and 215 in float32"):
        assert chosen_precision("bf16", CPU, 32, None) == "bf16"


def test_a_checkpoint_says_what_auto_was(large, tmp_path, monkeypatch) -> None:
    for name, bf16 in {"bf16": True, "32": False}.items():
        has(monkeypatch, bf16)
        found = train(resolve("sl", Data(), 16, epochs=1), large, tmp_path / f"{name}.pt", Hardware("cpu"))
        assert found.config["precision"] == name


def test_a_run_that_has_begun_keeps_its_precision_and_says_so(large, tmp_path, monkeypatch) -> None:
    training = resolve("sl", Data(), 16, epochs=2, settings=["selection=last"])
    assert training.precision == "auto"
    has(monkeypatch, False)
    whole = train(training, large, tmp_path / "whole.pt", Hardware("cpu"))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(InterruptedRunError):
            train(training, large, tmp_path / "parts.pt", Hardware("cpu"))
    has(monkeypatch, True)
    with pytest.warns(Caution, match="continues in 32, in which it began; a new run would use bf16 here"):
        parts = train(training, large, tmp_path / "parts.pt", Hardware("cpu"), resume=True)
    assert parts.config["precision"] == "32"
    assert all(torch.equal(value, whole.state_dict[name]) for name, value in parts.state_dict.items())


def test_a_run_that_has_begun_is_not_taken_for_one_of_another_precision(large, tmp_path, monkeypatch) -> None:
    training = resolve("sl", Data(), 16, epochs=2, options={"precision": "32"})
    interrupt_after(monkeypatch, 1)
    with pytest.raises(InterruptedRunError):
        train(training, large, tmp_path / "c.pt", Hardware("cpu"))
    monkeypatch.undo()
    assert state_path(tmp_path / "c.pt").exists()
    has(monkeypatch, True)
    asked = training.model_copy(update={"precision": "bf16"})
    with pytest.raises(CannotResumeError, match="differs in precision"):
        train(asked, large, tmp_path / "c.pt", Hardware("cpu"), resume=True)
