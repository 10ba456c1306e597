"""A model that passes the check and fails later is told in one line, and what was measured stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope as gs
from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError
from gradscope.measure.inputs import Given
from gradscope.measure.options import AnalyzeOptions, Request
from gradscope.measure.runner import run
from gradscope.models.failures import explained_failures
from gradscope.models.given import given_model
from gradscope.models.inspection import one_line

#: Weights that nobody trained are cautioned of.
pytestmark = pytest.mark.filterwarnings("ignore::gradscope.errors.Caution")


class Own(BaseException):
    """An error that no `except Exception` catches."""


class Failing(nn.Module):
    """Linear logits; raises ``error`` for batches of more than two images."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error, self.last = error, nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        if self.error is not None and len(images) > 2:
            raise self.error
        logits: Tensor = self.last(images.flatten(1))
        return logits


class Late(Failing):
    """Returns what ``later`` makes of the logits for batches of more than two images."""

    def __init__(self, later: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.later = later

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return self.later(logits) if len(images) > 2 else logits


class Changing:
    """Gives logits in float32 once, then in float64."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor) -> Tensor:
        self.calls += 1
        return logits if self.calls == 1 else logits.double()


class _Severed(torch.autograd.Function):
    @staticmethod
    def forward(_: object, logits: Tensor) -> Tensor:
        return logits * 1

    @staticmethod
    def backward(_: object, slope: Tensor) -> Tensor:
        raise RuntimeError("there is no way back\nat all")


class Severed(Failing):
    """Logits whose backward pass raises."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = _Severed.apply(super().forward(images))
        return logits


def analyze(models: dict[str, nn.Module], digits: Splits, out: Path) -> Path:
    images = digits.test.subset(torch.arange(7))
    loaded = {name: given_model(model.eval(), images, label=name)[0] for name, model in models.items()}
    options = AnalyzeOptions.parse({"steps": 2, "batch_size": 7})
    request = Request.model_validate({"options": options, "models": tuple(models), "where": {"no_figures": True}})
    return run(request, out, Given(loaded, images))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Failing(ZeroDivisionError("too many\nby far")), "forward pass on a batch of 7: ZeroDivisionError: too many"),
        (Failing(SystemExit(0)), "forward pass on a batch of 7: SystemExit: 0"),
        (Failing(Own()), "forward pass on a batch of 7: Own"),
        (Failing(StopIteration()), "forward pass on a batch of 7: StopIteration"),
        (Severed(), "backward pass: RuntimeError: there is no way back"),
    ],
    ids=["error", "exit", "no exception", "stop", "backward"],
)
def test_the_model_the_pass_and_the_cause_are_told(model: nn.Module, told: str, digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError) as caught:
        analyze({"sound": Failing(), "bad": model}, digits, tmp_path / "out")
    assert str(caught.value) == f"model: bad failed in its {told}"


@pytest.mark.parametrize(
    ("later", "told"),
    [
        (lambda logits: (logits, logits), "must return logits (N, classes), got a tuple for 7 images; wrap it"),
        (lambda logits: logits[:3], "must return logits (N, classes), got a tensor (3, 10) for 7 images"),
        (lambda logits: logits[:, :3], "must return logits of 10 classes, got 3"),
        (Changing(), "must return logits of one type, got torch.float64 after torch.float32"),
        (lambda logits: logits.int(), "must return floating-point logits, got torch.int32"),
        (lambda logits: logits.to("meta"), "must return logits on the images' device, cpu, got meta"),
        (lambda logits: logits.to_sparse(), "must return logits (N, classes), got a sparse or nested tensor for 7"),
    ],
    ids=["tuple", "images", "classes", "type later", "type", "device", "layout"],
)
def test_what_is_no_logits_any_more_is_told(
    later: Callable[[Tensor], object], told: str, digits: Splits, tmp_path: Path
) -> None:
    model = Late(later)
    with pytest.raises(GradscopeError) as caught:
        analyze({"late": model}, digits, tmp_path / "out")
    assert str(caught.value).startswith(f"model: late {told}")
    assert not model._forward_hooks


def test_a_call_of_the_models_own_is_checked_too(digits: Splits, tmp_path: Path) -> None:
    class Called(Late):
        def __call__(self, images: Tensor) -> Any:
            return self.forward(images)

    with pytest.raises(GradscopeError, match=r"^model: own must return logits of 10 classes, got 3"):
        analyze({"own": Called(lambda logits: logits[:, :3])}, digits, tmp_path / "out")


def test_a_method_that_raises_is_told(digits: Splits) -> None:
    class Odd(Failing):
        def parameters(self, recurse: bool = True) -> Any:
            raise RuntimeError("none of your business")

    x, y = digits.test.batch(torch.arange(7), "cpu")
    with pytest.raises(GradscopeError, match=r"^model: Odd failed in its method parameters: RuntimeError: none of"):
        gs.trace(Odd().eval(), x, y, steps=2)


def test_an_error_that_cannot_be_told_is_named() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert one_line(MuteError()) == "MuteError"
    assert one_line(ValueError("x" * 1000)) == f"ValueError: {'x' * 200}"


def test_a_model_that_cannot_be_copied_is_told(digits: Splits) -> None:
    model = Failing().eval()
    model.last.source = (number for number in range(3))
    x, y = digits.test.batch(torch.arange(7), "cpu")
    told = "^model: Failing failed in its copying: TypeError: cannot pickle 'generator' object"
    with pytest.raises(GradscopeError, match=told):
        gs.landscape(model, x, y, space="weights", points=3)


def test_what_a_model_sets_for_all_is_set_back(digits: Splits) -> None:
    def odd(logits: Tensor) -> Tensor:
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
        return logits

    x, y = digits.test.batch(torch.arange(7), "cpu")
    with pytest.raises(GradscopeError) as caught:
        gs.trace(Late(odd).eval(), x, y, steps=2)
    assert str(caught.value) == "model must leave torch's default device unchanged, got one that sets it to meta"
    assert torch.get_default_device().type == "cpu"
    assert not torch.are_deterministic_algorithms_enabled()


def test_weights_that_are_not_there_yet_are_asked_for(digits: Splits) -> None:
    x, y = digits.test.batch(torch.arange(7), "cpu")
    with pytest.raises(GradscopeError, match=r"^model must have weights, got lazy layers; run a batch"):
        gs.trace(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval(), x, y)
    with pytest.raises(GradscopeError, match=r"^model must have weights, got some on the meta device"):
        gs.trace(Failing().eval().to("meta"), x, y)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("out of memory")])
def test_an_interrupt_and_a_full_memory_pass(error: BaseException) -> None:
    model = Failing(error)
    with pytest.raises(type(error)), explained_failures(lambda value: "bad" if value is model else None):
        model(torch.zeros(3, 1, 8, 8))


def test_an_error_of_gradscopes_own_keeps_its_traceback() -> None:
    model = Failing()
    with pytest.raises(ZeroDivisionError), explained_failures(lambda value: "bad" if value is model else None):
        _ = model(torch.zeros(3, 1, 8, 8)).sum() * (1 / 0)


def test_what_was_measured_before_stays(digits: Splits, tmp_path: Path) -> None:
    table = tmp_path / "out" / "summary.csv"

    class Begun(Failing):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 2 and table.exists():
                raise ValueError("no")
            return super().forward(images)

    with pytest.raises(GradscopeError, match="model: late failed in its forward pass"):
        analyze({"sound": Failing(), "late": Begun()}, digits, tmp_path / "out")
    assert "sound" in table.read_text()
