"""The assertion for test suites: when it fails, and what it says then."""

import pytest
import torch
from torch import Tensor, nn

import gradscope as gs
from gradscope.testing import RobustnessError, assert_not_masked
from tests.masks import Behind
from tests.test_architecture import imports

pytestmark = pytest.mark.usefixtures("little_work")

BALL = {"norm": "linf", "epsilon": 0.1}


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Images of two pixels, one brighter than the other by 0.1 to 0.7."""
    steps = torch.linspace(0.1, 0.7, 40)
    pairs = torch.stack([0.15 + steps, torch.full_like(steps, 0.15)], dim=1)
    return torch.cat([pairs, pairs.flip(1)]).reshape(80, 1, 1, 2)


@pytest.fixture(scope="module")
def y(x: Tensor) -> Tensor:
    return x.flatten(1).argmax(dim=1)


@pytest.fixture
def honest() -> nn.Module:
    """The brighter pixel is the class: it stands where the pixels differ by more than 2 epsilon."""
    return nn.Flatten().eval()


def test_an_honest_model_passes_and_its_report_comes_back(honest: nn.Module, x: Tensor, y: Tensor) -> None:
    report = assert_not_masked(honest, x, y, **BALL, at_least=0.5, seed=3)
    assert report.audits == gs.audit(honest, x, y, **BALL, claim=0.5, budget="quick", seed=3).audits
    assert report.upper_bound == pytest.approx(float(((x.flatten(1).diff().abs()) > 0.2).double().mean()), abs=0.02)


def test_masking_fails_with_what_was_found(honest: nn.Module, x: Tensor, y: Tensor) -> None:
    masked = Behind(honest, after=lambda logits: 1e4 * logits).eval()
    with pytest.raises(AssertionError) as failed:
        assert_not_masked({"loud": masked}, x, y, **BALL)
    assert isinstance(failed.value, RobustnessError)
    report, lines = failed.value.report, str(failed.value).splitlines()
    assert report.verdict == "masking found"
    assert lines[0] == f"loud: masking found: {report.causes[0]}; its robust accuracy is not to be trusted"
    low, high = (100 * end for end in report.interval)
    bound = f"{100 * report.upper_bound:.1f} % [{low:.1f}, {high:.1f}]"
    assert any("lowest robust accuracy" in line and bound in line for line in lines)
    fired = report.frame().query("state == 'fired'")
    for step in fired["next_step"]:
        assert f"      next: {step}" in lines


def test_a_bound_below_what_is_asked_for_fails(honest: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(RobustnessError, match=r"^net: at_least is refuted, the claim of 99\.5 % refuted: at most "):
        assert_not_masked({"net": honest}, x, y, **BALL, at_least=0.995)


def test_an_undecided_audit_fails_unless_it_is_allowed(honest: nn.Module, x: Tensor, y: Tensor) -> None:
    cut = Behind(honest, after=lambda logits: logits.detach()).eval()
    with pytest.raises(RobustnessError, match=r"^cut: the audit is inconclusive \(.*allow_inconclusive=True"):
        assert_not_masked({"cut": cut}, x, y, **BALL)
    report = assert_not_masked({"cut": cut}, x, y, **BALL, allow_inconclusive=True)
    assert report.verdict == "inconclusive"


def test_a_mistake_is_no_failed_assertion(honest: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(gs.GradscopeError, match="norm"):
        assert_not_masked(honest, x, y, norm="l3", epsilon=0.1)
    with pytest.raises(gs.GradscopeError, match="'sample' is unknown; did you mean 'samples'"):
        assert_not_masked(honest, x, y, **BALL, sample=40)
    with pytest.raises(gs.GradscopeError, match="'claim' is unknown"):
        assert_not_masked(honest, x, y, **BALL, claim=0.5)


def test_it_needs_no_pytest() -> None:
    assert not {name for name in imports("gradscope.testing") if name.startswith(("pytest", "_pytest"))}
