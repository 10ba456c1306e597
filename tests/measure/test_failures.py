"""A model that passes the check and fails later is told in one line, and what was measured stays."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gradscope.data.image_set import Splits
from gradscope.errors import GradscopeError
from gradscope.measure.failures import explained_failures
from gradscope.measure.inputs import Given
from gradscope.measure.options import AnalyzeOptions, Request
from gradscope.measure.runner import run
from gradscope.models.given import given_model


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
        (Severed(), "backward pass: RuntimeError: there is no way back"),
    ],
    ids=["error", "exit", "no exception", "backward"],
)
def test_the_model_the_pass_and_the_cause_are_told(model: nn.Module, told: str, digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError) as caught:
        analyze({"sound": Failing(), "bad": model}, digits, tmp_path / "out")
    assert str(caught.value) == f"model: bad failed in its {told}"


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

    class Late(Failing):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 2 and table.exists():
                raise ValueError("no")
            return super().forward(images)

    with pytest.raises(GradscopeError, match="model: late failed in its forward pass"):
        analyze({"sound": Failing(), "late": Late()}, digits, tmp_path / "out")
    assert "sound" in table.read_text()
