"""Estimates: passes counted by hand, and seconds from records before a probe."""

import platform
from pathlib import Path

import pytest

from gradscope.study import estimate
from gradscope.study.estimate import Estimate, Estimator, work_of
from gradscope.study.expansion import read_study
from gradscope.study.plan import Plan, make_plan
from gradscope.study.state import Places, Record

NETWORK = "cnn2 1x8x8 10"
#: Training and test images of the digits; a tenth of the former is held out.
TRAIN, TEST = 1438, 359


def plan(tmp_path: Path, text: str) -> Plan:
    (tmp_path / "study.toml").write_text(text)
    return make_plan(read_study(tmp_path / "study.toml"))


def passes(tmp_path: Path, measure: str) -> dict[str, float]:
    text = f'[grid]\nmodes = ["sl", "rl"]\n[[measure]]\nname = "m"\n{measure}\n'
    work = work_of(plan(tmp_path, text))["measure-m"]
    return {key.removeprefix(f"{NETWORK} "): count for key, count in work.items()}


@pytest.mark.parametrize(
    ("mode", "gradients"),
    [("sl", 10), ("sl-adv", 10 + 2), ("rl-adv", 10 + 3)],
)
def test_an_adversarial_epoch_costs_twice_and_its_validation(tmp_path: Path, mode: str, gradients: int) -> None:
    work = work_of(plan(tmp_path, f'[grid]\nmodes = ["{mode}"]\n[training]\nepochs = 10\n'))[f"model-{mode}-s0"]
    attacked = (gradients - 10) * (1 + 11) * 0.1 * TRAIN
    assert work[f"{NETWORK} gradient"] == pytest.approx(gradients * 0.9 * TRAIN + attacked)
    assert work[f"{NETWORK} forward"] == pytest.approx(10 * 0.1 * TRAIN + TEST)


def test_training_in_bf16_is_timed_in_bf16(tmp_path: Path) -> None:
    text = '[grid]\nmodes = ["sl"]\n[training]\nepochs = 10\nprecision = "bf16"\n'
    work = work_of(plan(tmp_path, text))["model-sl-s0"]
    assert work[f"{NETWORK} gradient-bf16"] == pytest.approx(10 * 0.9 * TRAIN)
    assert work.keys() == {f"{NETWORK} gradient-bf16", f"{NETWORK} forward-bf16"}
    assert estimate._Probe("cpu").seconds({f"{NETWORK} gradient-bf16": 1.0, f"{NETWORK} forward": 1.0}) > 0


def test_passes_of_the_commands(tmp_path: Path) -> None:
    assert passes(tmp_path, 'command = "analyze"\nattack = "pgd,pgd-paper"\nsteps = 9\nsamples = 5') == {
        "gradient": 2 * 2 * 10 * 5
    }
    assert passes(tmp_path, 'command = "analyze"\nmodels = "sl"') == {"gradient": 101 * TEST}
    assert passes(tmp_path, 'command = "transfer"\nsteps = 9\nsamples = 5') == {
        "gradient": 2 * (10 + 1 + 2 * 20) * 5,
        "forward": 2 * 2 * 5,
    }
    attack = 'command = "attack"\nmodels = "sl"\nsteps = 7\nqueries = 30\nsamples = 5\nepsilons = [0.5, 1]\n'
    assert passes(tmp_path, attack + 'attacks = "pgd,square"') == {"gradient": 2 * 5 * 7, "forward": 2 * 5 * 31}
    more = passes(tmp_path, attack + 'attacks = "transfer"\nsurrogate = "rl"')
    assert more["gradient"] == 2 * 5 + 5 * 7
    line = (
        'command = "landscape"\nmodels = "sl"\nspace = "weights"\ntowards = "rl"\nline = true\npoints = 9\nimages = 5\n'
    )
    assert passes(tmp_path, line) == {"forward": 9 * 5, "gradient": 60 * 5}
    more = passes(tmp_path, line + 'align = true\ncurve = "bezier"\ncurve_updates = 7')
    assert more == {"forward": 3 * 9 * 5, "gradient": 60 * 5 + 7 * 128}
    for measure in ("landscape", "audit", 'landscape"\nspace = "weights'):
        work = passes(tmp_path, f'command = "{measure}"')
        assert work["gradient"] > 0
        assert work["forward"] > 0


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A pass takes a millisecond; which were timed."""
    timed: list[str] = []

    def time(self: object, network: str, *, gradient: bool, precision: str) -> float:
        assert precision == "32"
        timed.append(f"{network} {gradient}")
        return 0.001

    monkeypatch.setattr(estimate._Probe, "_time", time)
    return timed


def foreseen(made: Plan, reports: Path) -> dict[str, Estimate]:
    return Estimator(work_of(made), reports, "cpu").estimate(made.stages)


RECIPE = '[grid]\nmodes = ["sl", "rl"]\n[training]\nepochs = 10\n'


def test_without_records_a_probe_is_timed_once_a_kind_of_pass(tmp_path: Path, probe: list[str]) -> None:
    found = foreseen(plan(tmp_path, RECIPE), tmp_path / "reports")
    assert {one.source for one in found.values()} == {"probe"}
    assert found["model-sl-s0"].seconds == pytest.approx(1 + 0.001 * (10 * TRAIN + TEST))
    assert sorted(probe) == [f"{NETWORK} False", f"{NETWORK} True"]


def leave_record(made: Plan, label: str, reports: Path, seconds: float, **changes: object) -> None:
    stage = next(stage for stage in made.stages if stage.label == label)
    fields = {"kind": stage.kind, "name": stage.name, "state": "done", "seconds": seconds}
    where = {"host": platform.node(), "device": "cpu"}
    record = Record.parse({"label": label, "where": where, "work": work_of(made)[label], **fields, **changes})
    (reports / "other").mkdir(parents=True, exist_ok=True)
    Places(reports, reports / "other").write(record)


def test_records_come_before_the_probe(tmp_path: Path, probe: list[str]) -> None:
    made, reports = plan(tmp_path, RECIPE), tmp_path / "reports"
    leave_record(made, "model-sl-s0", reports, 40.0)
    found = foreseen(made, reports)
    assert found["model-sl-s0"] == Estimate(40.0, "record")
    # As many passes on the same network, which took 40 s.
    assert found["model-rl-s0"] == Estimate(pytest.approx(40.0), "records")
    longer = foreseen(plan(tmp_path, RECIPE.replace("10", "20")), reports)
    assert longer["model-rl-s0"].source == "records"
    assert longer["model-rl-s0"].seconds == pytest.approx(40.0 * (20 * TRAIN + TEST) / (10 * TRAIN + TEST))


@pytest.mark.parametrize(
    "changes",
    [
        {"where": {"host": "elsewhere", "device": "cpu"}},
        {"where": {"host": platform.node(), "device": "NVIDIA"}},
        {"state": "failed"},
    ],
)
def test_records_of_other_machines_and_failures_do_not_count(
    tmp_path: Path, probe: list[str], changes: dict[str, object]
) -> None:
    made, reports = plan(tmp_path, RECIPE), tmp_path / "reports"
    leave_record(made, "model-sl-s0", reports, 40.0, **changes)
    assert foreseen(made, reports)["model-sl-s0"].source == "probe"


def test_the_probe_times_real_passes(tmp_path: Path) -> None:
    found = foreseen(plan(tmp_path, RECIPE), tmp_path)
    assert 1 < found["model-sl-s0"].seconds < 600
