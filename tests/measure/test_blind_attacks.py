"""On how many images an attack had no gradient is counted over all of its images, and said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope as gs
from gradscope.errors import Caution
from gradscope.functional import NOT_FINITE, ZERO, blindness

#: Above it an image is bright in its corner.
BRIGHT = 0.7
#: Radii that an attack needs most of to fool the model on :func:`images`: a random start does not.
RADII = {"linf": 0.16, "l2": 0.3}


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, factor: Tensor) -> Tensor:
        context.save_for_backward(factor)
        return images * 1

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Any:  # type: ignore[override]
        return slope * context.saved_tensors[0], None


class Blinding(nn.Module):
    """Logits that are the image; the gradient of images whose corner is bright is multiplied by ``factor``."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, :, :1, :1] > BRIGHT
        logits: Tensor = _Scaled.apply(images, torch.where(bright, self.factor, 1.0)).flatten(1)[:, 1:]
        return logits


def images(count: int = 30) -> tuple[Tensor, Tensor]:
    """Of each three, one is bright in its corner; all are right by a margin of 0.3."""
    x = torch.full((count, 1, 2, 2), 0.2)
    x[:, 0, 0, 1] = 0.5
    x[::3, 0, 0, 0] = 1.0
    return x, torch.zeros(count, dtype=torch.int64)


KINDS = [
    pytest.param(torch.nan, "not-finite-gradient", "NaN or infinite", id="nan"),
    pytest.param(torch.inf, "not-finite-gradient", "NaN or infinite", id="infinite"),
    pytest.param(0.0, "zero-gradient", "exactly 0", id="zero"),
]
pytestmark = pytest.mark.filterwarnings("ignore::gradscope.errors.Caution")


def test_the_worst_of_a_row_is_told() -> None:
    rows = torch.tensor([[1.0, -1e-40], [0.0, -0.0], [torch.nan, 0.0], [-torch.inf, 1.0]])
    assert blindness(rows).tolist() == [0, ZERO, NOT_FINITE, NOT_FINITE]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("factor", "metric", "words"), KINDS)
def test_a_trace_counts_them_over_all_images(factor: float, metric: str, words: str, norm: str) -> None:
    found = gs.trace(Blinding(factor).eval(), *images(), norm=norm, epsilon=RADII[norm], steps=5, batch_size=7)
    rows = found.frame("summary").set_index(["metric", "subset"])["value"]
    other = {"not-finite-gradient": "zero-gradient", "zero-gradient": "not-finite-gradient"}[metric]
    assert rows[metric, "path/all"] == pytest.approx(1 / 3)
    assert rows[other, "path/all"] == 0
    samples = found.frame("samples")
    blind = samples[(samples["metric"] == metric) & (samples["value"] == 1)]
    assert list(blind["index"]) == list(range(0, 30, 3))
    if not (factor == torch.inf and norm == "linf"):  # whose sign is known
        assert rows["accuracy", "worst/all"] == pytest.approx(1 / 3), "an image without a gradient stays where it is"
    assert f"caution: Blinding: at some step of pgd the gradient was {words} on 10 of 30 images" in found.summary()


@pytest.mark.parametrize(("factor", "metric", "words"), KINDS)
def test_each_attack_counts_those_that_it_had(factor: float, metric: str, words: str) -> None:
    options = {"attacks": "pgd,apgd-ce,fab-t,square", "steps": 5, "queries": 2, "batch_size": 7, "cascade": False}
    with pytest.warns(
        Caution, match=f"at some step of pgd, apgd-ce, fab-t the gradient was {words} on 10 of 30 images"
    ):
        found = gs.attack(Blinding(factor).eval(), *images(), norm="linf", epsilon=RADII["linf"], **options)
    rows = found.frame()
    value = rows[rows["metric"] == metric].set_index("attack")["value"]
    assert value.to_dict() == {name: pytest.approx(1 / 3) for name in ("pgd", "apgd-ce", "fab-t")}
    assert f"at some step of pgd, apgd-ce, fab-t the gradient was {words} on 10 of 30 images" in found.summary()


def test_transfer_says_it_of_each_source_and_the_page_too(tmp_path: Path) -> None:
    models = {"sound": Blinding(1.0).eval(), "blind": Blinding(torch.nan).eval()}
    found = gs.transfer(models, *images(), norm="l2", epsilon=RADII["l2"], steps=5)
    said = "blind: at some step of pgd the gradient was NaN or infinite on 10 of 30 images"
    assert said in found.summary()
    assert "sound: at some step" not in found.summary()
    assert said in gs.report(found.save(tmp_path / "transfer", figures=False)).read_text()


def test_an_audit_counts_them_under_its_main_attacks() -> None:
    found = gs.audit(Blinding(torch.nan).eval(), *images(64), norm="linf", epsilon=RADII["linf"], budget="quick")
    seen = found.manifest["checkpoints"][0]["gradients"]
    assert seen["pgd"]["images"] == 64
    assert seen["pgd"]["not_finite_gradient"] == 22
