from collections.abc import Iterator
from fractions import Fraction
from math import inf, nan
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gradscope.config import (
    DEFAULT_RADII,
    OBJECTIVES,
    PGD,
    PGD_ATTACKS,
    Adversary,
    Balls,
    Budget,
    Data,
    Objective,
    Phase,
    Training,
    apply_setting,
    attack_settings,
    merge,
    parse_radius,
    read_toml,
)
from gradscope.errors import GradscopeError
from gradscope.measure.options import AttackOptions
from gradscope.measure.options.common import ForeignOptions
from gradscope.options import DataOptions
from gradscope.validation import MUST, Config

PHASE: dict[str, Any] = {"epochs": 2, "learning_rate": 0.1}
TRAINING: dict[str, Any] = {"mode": "sl", "architecture": "small-cnn", "phases": [PHASE]}
few = settings(derandomize=True, max_examples=50, deadline=None)


def message_of(config, values):
    with pytest.raises(GradscopeError) as caught:
        config.parse(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("given_value", "radius"),
    [("8/255", 8 / 255), (" 8/255 ", 8 / 255), (0.03, 0.03), ("0.03", 0.03), (1, 1.0), ("1e-3", 1e-3), (0, 0.0)],
)
def test_radius_is_read(given_value, radius):
    assert parse_radius(given_value) == radius
    assert PGD.parse({"epsilon": given_value}).epsilon == radius


@pytest.mark.parametrize(
    "given_value",
    ["abc", "", -1, "-8/255", nan, inf, "nan", "inf", "1/0", None, [1], "1e400", pytest.param(10**400, id="10**400")],
)
def test_radius_is_refused_in_one_line(given_value):
    with pytest.raises(ValueError, match="at least 0"):
        parse_radius(given_value)
    assert message_of(PGD, {"epsilon": given_value}).startswith(
        "epsilon must be a number of at least 0, such as 0.03 or 8/255"
    )


@few
@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_a_fraction_is_the_nearest_float(numerator, denominator):
    assert parse_radius(f"{numerator}/{denominator}") == float(Fraction(numerator, denominator))


def test_configs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        PGD().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (PGD, {"step": 3}, "step: 'step' is unknown; did you mean 'steps'? known: box, "),
        (PGD, {"norm": "L2"}, "norm: 'L2' is unknown; did you mean 'l2'? known: l2, linf"),
        (PGD, {"steps": 0}, "steps must be at least 1, got 0"),
        (PGD, {"norm_floor": nan}, "norm_floor must be a finite number, got nan"),
        (PGD, {"steps": "x"}, "steps must be a whole number, got 'x'"),
        (PGD, {"steps": 1.5}, "steps must be a whole number, got 1.5"),
        (PGD, {"box": "x"}, "box must be true or false, got 'x'"),
        (PGD, {"norm": 1}, "norm must be one of linf, l2, got 1"),
        (PGD, {"norm_floor": "x"}, "norm_floor must be a number, got 'x'"),
        (Budget, {"queries": 0}, "queries must be at least 1, got 0"),
        (Budget, {"step_size": -1}, "step_size must be a number of at least 0, such as 0.03 or 8/255, got -1"),
        (PGD, {"restarts": 2, "start": "none"}, "restarts must be 1 without a random start, got start 'none'"),
        (Phase, {**PHASE, "learning_rate": 0}, "learning_rate must be above 0, got 0"),
        (Phase, {**PHASE, "learning_rate": 1e300}, "learning_rate must be at most 1e+37, got 1e+300"),
        (Phase, {**PHASE, "exploration": 1.5}, "exploration must be at most 1, got 1.5"),
        (Phase, {**PHASE, "exploration_scope": "sampel"}, "exploration_scope: 'sampel' is unknown; did you mean 'sa"),
        (Training, {**TRAINING, "phases": []}, "phases must have at least 1 entry, got []"),
        (Training, {**TRAINING, "phases": 3}, "phases must be a list, got 3"),
        (Training, {**TRAINING, "phases": [3]}, "phases.0 must be a table, got 3"),
        (Training, {**TRAINING, "mode": 3}, "mode must be text, got 3"),
        (AttackOptions, {"epsilon": [0.1]}, "epsilon must be a number, got [0.1]"),
        (Training, {**TRAINING, "phases": [{**PHASE, "epoch": 1}]}, "phases.0.epoch: 'epoch' is unknown; did you mean"),
        (
            Training,
            {**TRAINING, "phases": [PHASE, {**PHASE, "epochs": 0}]},
            "phases.1.epochs must be at least 1, got 0",
        ),
        (Training, {**TRAINING, "data": {"datasets": "x"}}, "data.datasets: 'datasets' is unknown; did you mean 'data"),
        (
            Training,
            {**TRAINING, "phases": [{**PHASE, "adversary": {"epsilo": 1}}]},
            "phases.0.adversary.epsilo: 'epsilo' is unknown; did you mean 'epsilon'?",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(config, values, message):
    assert message_of(config, values).startswith(message)


def test_a_missing_key_is_named():
    assert message_of(Phase, {"epochs": 1}) == "learning_rate must be given"


def kinds(of: type[Config] = Config) -> Iterator[type[Config]]:
    """Every configuration that can be made."""
    for kind in of.__subclasses__():
        yield from kinds(kind)
        if not getattr(kind, "__abstractmethods__", None):
            yield kind


BAD = (object(), "x", "", b"x", -1, 0, 10**30, 1.5, nan, [], [None], [[]], {}, {"a": 1}, None, True)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_no_sentence_of_pydantics_reaches_a_user(kind):
    types = set()
    for name, field in kind.model_fields.items():
        for value in BAD:
            try:
                kind.model_validate({field.alias or name: value})
            except ValidationError as error:
                types |= {one["type"] for one in error.errors()}
            except (GradscopeError, TypeError):  # a Request holds options of any kind, and nobody writes one down
                pass
    # The last comes only after another.
    assert types <= MUST.keys() | {"value_error", "extra_forbidden", "default_factory_not_called"}


def test_a_misspelt_objective_offers_the_closest():
    message = message_of(Phase, {**PHASE, "objective": "cross-entropi"})
    assert message.startswith("objective: 'cross-entropi' is unknown; did you mean 'cross-entropy'?")


@pytest.mark.parametrize(
    ("mix", "part"),
    [({"cross-entropy": -1}, "above 0"), ({"cross": 1}, "'cross' is unknown"), ({}, "at least 1 entry")],
)
def test_a_mistake_in_a_mix_is_named(mix, part):
    message = message_of(Phase, {**PHASE, "objective": mix})
    assert message.startswith("objective")
    assert part in message
    assert "[" not in message.partition(": ")[0]


def test_the_mix_of_one_objective_has_weight_1():
    assert Phase.parse(PHASE).mix == {"cross-entropy": 1.0}
    mix = {"cross-entropy": 0.25, "policy-gradient": 0.75}
    assert Phase.parse({**PHASE, "objective": mix}).mix == mix


def test_learning_rate_is_constant_without_a_final_one():
    phase = Phase.parse({**PHASE, "epochs": 10})
    assert [phase.learning_rate_at(epoch) for epoch in (0, 3.5, 10)] == [0.1] * 3


def test_learning_rate_warms_up_then_goes_in_a_line():
    phase = Phase(epochs=10, learning_rate=0.1, final_learning_rate=0.02, warmup_epochs=2)
    assert phase.learning_rate_at(0) == 0
    assert phase.learning_rate_at(0.5) == pytest.approx(0.025)
    assert phase.learning_rate_at(2) == pytest.approx(0.1)
    assert phase.learning_rate_at(6) == pytest.approx(0.06)
    assert phase.learning_rate_at(10) == pytest.approx(0.02)


@few
@given(
    epochs=st.integers(1, 20),
    warmup=st.integers(0, 25),
    first=st.floats(1e-6, 1),
    final=st.one_of(st.none(), st.floats(1e-6, 1)),
    share=st.floats(0, 1),
)
def test_learning_rate_stays_between_its_ends(epochs, warmup, first, final, share):
    phase = Phase(epochs=epochs, learning_rate=first, final_learning_rate=final, warmup_epochs=warmup)
    rate = phase.learning_rate_at(share * epochs)
    assert 0 <= rate <= max(first, final or 0) * (1 + 1e-12)
    if share * epochs >= warmup:
        assert rate >= min(first, final or first) * (1 - 1e-12)


def test_step_size_of_an_adversary():
    assert Adversary(epsilon=0.1, steps=10).resolved_step_size == pytest.approx(0.025)
    assert Adversary(epsilon=0.1, step_size="2/255").resolved_step_size == 2 / 255  # type: ignore[arg-type]


def test_epochs_of_all_phases():
    assert Training.parse({**TRAINING, "phases": [PHASE, {**PHASE, "epochs": 5}]}).epochs == 7


def test_a_resolved_config_survives_json():
    config = Training.parse({**TRAINING, "phases": [{**PHASE, "adversary": {"epsilon": "8/255"}}]})
    assert Training.model_validate_json(config.model_dump_json()) == config


def test_named_attacks_and_radii_are_valid():
    for name in PGD_ATTACKS:
        assert attack_settings(name, {}).epsilon == 1.0
    assert set(DEFAULT_RADII) == {"l2", "linf"}
    paper = attack_settings("pgd-paper", {})
    assert (paper.start, paper.box, paper.reduction, paper.norm_floor) == ("cube", False, "mean", 1e-6)
    exact = PGD()
    assert (exact.box, exact.reduction, exact.norm_floor, exact.precision) == (True, "sum", 0.0, "float32")


def test_an_attack_gets_the_radius_of_its_norm_unless_told():
    assert attack_settings("pgd", {}) == PGD()
    linf = attack_settings("pgd-paper", {"norm": "linf"})
    assert (linf.epsilon, linf.start) == (8 / 255, "cube")
    told = attack_settings("pgd-paper", {"norm": "linf", "epsilon": "4/255", "start": "none"})
    assert (told.epsilon, told.start) == (4 / 255, "none")
    for name, changes in (("pdg", {}), ("pgd", {"norm": "l3"}), ("pgd", {"stepz": 1})):
        with pytest.raises(GradscopeError, match="is unknown; did you mean"):
            attack_settings(name, changes)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("pgd", {}, 2.5 * 0.5 / 20),
        ("pgd-margin", {}, 2.5 * 0.5 / 20),
        ("pgd-paper", {}, 0.5 / 10),
        ("pgd-large-steps", {}, 10 * 2.5 * 0.5 / 20),
        ("pgd-large-steps", {"steps": 2}, 2 * 0.5),
        ("pgd", {"step_size": "2/255"}, 2 / 255),
        ("pgd-paper", {"step_size": 0.07}, 0.07),
        ("pgd", {"relative_step_size": "0.1"}, 0.05),
        ("pgd-paper", {"relative_step_size": 0.2}, 0.1),
        ("fgsm", {"step_size": 0.01, "steps": 50}, 0.5),
    ],
)
def test_one_rule_says_how_long_a_step_is(name, given, expected):
    settings = attack_settings(name, {"epsilon": 0.5, "steps": 20, **given})
    assert settings.step_size == pytest.approx(expected, rel=1e-12)
    assert settings.steps == (1 if name == "fgsm" else given.get("steps", 20))
    saved = settings.model_dump()
    assert "relative_step_size" not in saved
    assert PGD.parse(saved).step_size == settings.step_size


def test_of_two_step_sizes_one_is_too_many():
    both = {"step_size": 0.1, "relative_step_size": 0.2}
    for refuse in (lambda: attack_settings("pgd", both), lambda: Budget.parse(both)):
        with pytest.raises(GradscopeError, match=r"^step_size must not be given together with .*, got 0\.1 and 0\.2$"):
            refuse()


def test_a_gradient_is_smoothed_where_it_is_asked_for():
    assert not PGD().smooths
    assert PGD(smoothing=2).smooths
    assert PGD.parse({"smoothing_radius": "1/255"}).smooths


def test_every_objective_is_described():
    assert set(OBJECTIVES) == set(get_args(Objective))


def test_toml_is_read(tmp_path):
    (tmp_path / "a.toml").write_text('mode = "sl"\n[data]\ndataset = "digits"\n')
    assert read_toml(tmp_path / "a.toml") == {"mode": "sl", "data": {"dataset": "digits"}}


@pytest.mark.parametrize("content", [None, b"a = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_damaged_toml_is_one_line(tmp_path, content):
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GradscopeError, match=r"config: .*a\.toml") as caught:
        read_toml(path)
    assert "\n" not in str(caught.value)


def test_merge_goes_table_by_table_and_leaves_its_arguments():
    base = {"data": {"dataset": "digits", "image_size": 8}, "phases": [1, 2], "seed": 0}
    changes = {"data": {"image_size": 32}, "phases": [3], "new": {"a": 1}}
    assert merge(base, changes) == {
        "data": {"dataset": "digits", "image_size": 32},
        "phases": [3],
        "seed": 0,
        "new": {"a": 1},
    }
    assert base == {"data": {"dataset": "digits", "image_size": 8}, "phases": [1, 2], "seed": 0}


@few
@given(st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3)))
def test_merge_has_an_identity(value):
    table = {"root": value}
    assert merge(table, {}) == merge({}, table) == merge(table, table) == table


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("phases.0.epochs=3", ("phases", 0, "epochs"), 3),
        ("phases.1.learning_rate=1e-3", ("phases", 1, "learning_rate"), 1e-3),
        ("phases.0={epochs = 4}", ("phases", 0), {"epochs": 4}),
        ("data.dataset=cifar10", ("data", "dataset"), "cifar10"),
        ('data.dataset="a=b"', ("data", "dataset"), "a=b"),
        ("data.dataset=a=b", ("data", "dataset"), "a=b"),
        ("data.data_root=", ("data", "data_root"), ""),
        ("horizontal_flip=true", ("horizontal_flip",), True),
        ("phases.0.adversary.epsilon=8/255", ("phases", 0, "adversary", "epsilon"), "8/255"),
    ],
)
def test_a_setting_is_applied(setting, path, value):
    values: Any = {
        "seed": 0,
        "data": {"dataset": "digits"},
        "phases": [{"epochs": 1, "adversary": {"epsilon": 0.1}}, {"epochs": 1}],
    }
    apply_setting(values, setting)
    for part in path:
        values = values[part]
    assert values == value


@pytest.mark.parametrize(
    "setting",
    [
        "seed",
        "=3",
        "",
        "dta.dataset=x",
        "phases.2.epochs=1",
        "phases.x=1",
        "phases.-1.epochs=1",
        "phases.².epochs=1",
        "adversary.epsilon=1",
        "mode.x=1",
        "batch_size.x.y=1",
        "phases.0.epochs.x=1",
    ],
)
def test_a_setting_that_leads_nowhere_is_one_line(setting):
    values: dict[str, Any] = {
        "mode": "sl",
        "batch_size": 8,
        "adversary": None,
        "data": {"dataset": "digits"},
        "phases": [{"epochs": 1}, {"epochs": 1}],
    }
    with pytest.raises(GradscopeError, match=r"^set\b") as caught:
        apply_setting(values, setting)
    assert "\n" not in str(caught.value)
    assert values["phases"] == [{"epochs": 1}, {"epochs": 1}]


def test_a_misspelt_table_offers_the_closest():
    with pytest.raises(GradscopeError, match="did you mean 'data'"):
        apply_setting({"data": {}}, "dta.dataset=x")


def test_data_root_is_a_path(tmp_path):
    assert Data.parse({"data_root": str(tmp_path)}).data_root == tmp_path


def test_the_balls_of_a_battery():
    assert Balls().radii == (1.0,)
    assert Balls(norm="linf").radii == (8 / 255,)
    several = Balls.parse({"norm": "linf", "epsilon": "2/255", "epsilons": ["8/255", "2/255", "0.001"]})
    assert several.radii == (0.001, 2 / 255, 8 / 255)
    for bad in ({"epsilon": "0"}, {"epsilons": ["0.5", "0/255"]}):
        with pytest.raises(GradscopeError, match="epsilon must be above 0 in an attack, got 0"):
            Balls.parse(bad)


@pytest.mark.parametrize(
    ("kind", "key"), [(Data, "data_root"), (DataOptions, "data_root"), (ForeignOptions, "weights")]
)
def test_an_empty_path_is_not_the_working_directory(kind, key):
    with pytest.raises(GradscopeError, match=rf"^{key}\S* must be a non-empty path, got ''"):
        kind.parse({key: ""})
