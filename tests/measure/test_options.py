"""Options: declared once, and the same in Python, on the command line and in a recipe."""

import inspect
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import gradscope
from gradscope.cli import app, main, measuring
from gradscope.measure.options import COMMANDS, Request
from gradscope.measure.options.common import Circumstances, ForeignOptions, Options
from gradscope.options import GROUPS, DataOptions, RunOptions
from gradscope.study.expansion import read_study
from gradscope.training.options import TrainingData, TrainOptions
from gradscope.validation import Config

SHARED: tuple[type[Config], ...] = (DataOptions, ForeignOptions, Circumstances)
#: The function of :mod:`gradscope` for each command.
FUNCTIONS = {"analyze": "trace", **{name: name for name in COMMANDS if name != "analyze"}}

SAMPLED: dict[str, Any] = {"seed": 5, "samples": 9, "batch_size": 3}
ATTACK: dict[str, Any] = {
    **{"norm": "linf", "epsilon": "4/255", "step_size": 0.25, "relative_step_size": 0.2, "steps": 7, "loss": "margin"},
    **{"start": "none", "box": False, "reduction": "mean", "norm_floor": 0.5, "precision": "float64"},
}
#: Every option at another value than its default: command, what has to be beside it, options.
OTHERWISE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("analyze", {}, SAMPLED | ATTACK | {"metrics": ["loss", "norm"], "attack": ["pgd-paper"], "restarts": 2}),
    ("transfer", {}, SAMPLED | ATTACK | {"attack": "pgd-paper"}),
    ("landscape", {}, ATTACK | {"attack": "pgd-paper", "seed": 5, "points": 7, "span": 2.5, "images": 3}),
    ("landscape", {}, {"space": "weights", "index": [3, 17], "right": True, "plane": "shared", "versus": "pgd-paper"}),
    (
        "landscape",
        {"space": "weights"},
        {"line": True, "batch_norm": "re-estimated", "adversarial": True, "metric": "module:factory"},
    ),
    ("landscape", {"space": "weights", "adversarial": True}, ATTACK | {"attack": "pgd-paper"}),
    ("landscape", {"space": "weights", "towards": "rl", "line": True}, {"align": True, "curve": "bezier"}),
    ("landscape", {"space": "weights", "towards": "rl", "line": True, "curve": "bezier"}, {"curve_updates": 7}),
    (
        "spectrum",
        {},
        {
            **{
                "seed": 5,
                "images": 3,
                "space": "input",
                "matrix": ["gauss-newton"],
                "layers": True,
                "adversarial": True,
            },
            **{"eigenvalues": 3, "probes": 2, "iterations": 9, "batch_size": 7},
        },
    ),
    ("spectrum", {"adversarial": True}, ATTACK | {"attack": "pgd-paper"}),
    (
        "attack",
        {},
        {
            **SAMPLED,
            **{"attacks": ["pgd", "square"], "norm": "linf", "epsilon": 0.3, "epsilons": [0.25, "8/255"]},
            **{"step_size": 0.1, "relative_step_size": 0.2, "steps": 7, "restarts": 2, "smoothing": 3, "targets": 4},
            **{
                "queries": 50,
                "noise_points": 6,
                "draws": 3,
                "loss": "lib.losses:mine",
                "cascade": False,
                "save_images": True,
                "curve": True,
                "backward": ["0=identity"],
            },
        },
    ),
    (
        "audit",
        {},
        {
            **SAMPLED,
            **{"budget": "full", "norm": "linf", "epsilon": 0.3, "backward": ["0=identity"]},
            **{"draws": 3, "loss": "lib.losses:mine"},
            **{"claim": 0.5, "allow_inconclusive": True},
        },
    ),
    (
        "judge",
        {},
        {
            **SAMPLED,
            "attack": "pgd-paper",
            "budget": "full",
            "norm": "linf",
            "epsilon": 0.3,
            "backward": ["a=identity"],
            "draws": 3,
        },
    ),
]
CASES = [
    pytest.param(command, beside, name, value, id=f"{command} {' '.join([*beside, name])}")
    for command, beside, options in OTHERWISE
    for name, value in options.items()
]


def extra(kind: type[Config], name: str) -> dict[str, Any]:
    found = kind.model_fields[name].json_schema_extra
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "kind", [*COMMANDS.values(), *SHARED, TrainOptions, TrainingData, RunOptions], ids=lambda kind: kind.__name__
)
def test_every_option_says_what_it_is(kind: type[Config]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert extra(kind, name)["group"] in GROUPS
        completed = extra(kind, name)["names"]
        if completed is not None:
            module, _, table = completed.partition(":")
            assert isinstance(getattr(import_module(module), table), Mapping)


def test_every_option_of_a_measurement_is_tried_here() -> None:
    for command, kind in COMMANDS.items():
        tried = {name for one, _, options in OTHERWISE if one == command for name in options}
        assert tried == set(kind.model_fields) - set(kind.roles), command


# --- the three doors ---


@pytest.mark.parametrize(("command", "kind"), COMMANDS.items())
def test_a_command_has_an_option_for_each_field(command: str, kind: type[Options]) -> None:
    parameters: Any = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    options = {one.name: one for one in parameters if one.param_type_name == "option"}
    fields = {name: field for one in (kind, *SHARED) for name, field in one.model_fields.items()}
    fields = {name: field for name, field in fields.items() if (command, name) != ("judge", "attack")}  # no option
    gates = {"audit": {"fail_on_masking", "sarif", "schema"}, "judge": {"fail_on_blind", "allow_inconclusive"}}
    assert set(options) - set(fields) == {"out"} | gates.get(command, set())
    for name, field in fields.items():
        assert f"--{name.replace('_', '-')}" in options[name].opts
        assert options[name].help == field.description


@pytest.mark.parametrize(("command", "kind"), COMMANDS.items())
def test_a_function_has_a_keyword_for_each_field(command: str, kind: type[Options]) -> None:
    keywords = inspect.signature(getattr(gradscope, FUNCTIONS[command])).parameters
    assert set(kind.model_fields) <= set(keywords)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Request]:
    """The request that a command line makes."""
    requests: list[Request] = []
    monkeypatch.setattr(measuring, "refuse", lambda request, out: requests.append(request))
    monkeypatch.setattr(measuring, "_measure", lambda request, out: None)
    monkeypatch.setattr(measuring, "_pass_audits", lambda results, **gates: None)

    def read(command: str, *arguments: str) -> Request:
        with pytest.raises(SystemExit) as left:
            main([command, *arguments])
        assert not left.value.code
        return requests.pop()

    return read


def flags(name: str, value: Any) -> list[str]:
    """A value as it is typed."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]


@pytest.mark.parametrize(("command", "beside", "name", "value"), CASES)
def test_an_option_is_the_same_typed_or_in_a_recipe(
    command: str, beside: dict[str, Any], name: str, value: Any, typed: Callable[..., Request], tmp_path: Path
) -> None:
    given = beside | {name: value}
    expected = COMMANDS[command].parse(given)
    first = [given.get("attack", "pgd")] if command == "judge" else []
    rest = [one for one in given.items() if (command, one[0]) != ("judge", "attack")]
    arguments = [*first, "sl.pt", "rl.pt", *(part for one in rest for part in flags(*one))]
    assert typed(command, *arguments).options.content() == expected.content()
    options = "\n".join(f"{key} = {json.dumps(one)}" for key, one in given.items())  # JSON's values are TOML's
    (tmp_path / "study.toml").write_text(
        f'[grid]\nmodes = ["sl", "rl"]\n[[measure]]\ncommand = "{command}"\n{options}\n'
    )
    (measurement,) = read_study(tmp_path / "study.toml").measurements
    assert measurement.options == expected


def test_the_options_of_all_measurements_are_typed(typed: Callable[..., Request]) -> None:
    found = typed(
        *("attack", "a.pt", "b.pt", "--attacks", "transfer", "--surrogate", "c.pt", "--surrogate", "d,e.pt"),
        *("--dataset", "npz", "--data-root", "x.npz", "--image-size", "16", "--download"),
        *("--weights", "w", "--weights", "v", "--mean", "0.5,0.25", "--std", "1,2", "--trust-code"),
        *("--ignore-class-names", "--device", "cpu", "--devices", "2", "--resume", "--overwrite", "--no-figures"),
    )
    assert found == Request(
        options=COMMANDS["attack"].parse({"attacks": ["transfer"], "surrogate": ["c.pt", "d,e.pt"]}),
        models=("a.pt", "b.pt"),
        data=DataOptions(dataset="npz", data_root=Path("x.npz"), image_size=16, download=True),
        foreign=ForeignOptions(
            weights=(Path("w"), Path("v")), mean=(0.5, 0.25), std=(1, 2), trust_code=True, ignore_class_names=True
        ),
        where=Circumstances(device="cpu", devices=2, resume=True, overwrite=True, no_figures=True),
    )


# --- what decides the results ---


@pytest.mark.parametrize(("command", "beside", "name", "value"), CASES)
def test_another_value_is_another_content(command: str, beside: dict[str, Any], name: str, value: Any) -> None:
    kind = COMMANDS[command]
    assert kind.parse(beside | {name: value}).content() != kind.parse(beside).content()


@pytest.mark.parametrize(
    ("command", "one", "other"),
    [
        ("analyze", {"norm": "linf", "epsilon": "8/255"}, {"norm": "linf", "epsilon": 8 / 255}),
        ("analyze", {"epsilon": "4/4"}, {}),
        ("analyze", {"steps": 100, "step_size": "1/40"}, {}),
        ("analyze", {"relative_step_size": 0.5, "epsilon": 0.5}, {"step_size": 0.25, "epsilon": 0.5}),
        ("analyze", {"metrics": "norm, loss"}, {"metrics": ["loss", "norm"]}),
        ("transfer", {"norm": "linf"}, {"norm": "linf", "epsilon": "8/255"}),
        ("landscape", {"span": 3}, {}),
        ("landscape", {"index": "3,17"}, {"index": [3, 17]}),
        ("landscape", {"space": "weights", "attack": "pgd-paper"}, {"space": "weights"}),
        ("attack", {"epsilon": 0.5, "epsilons": "1"}, {"epsilons": ["1/1", "1/2"]}),
        ("attack", {"steps": 100, "queries": 5000}, {}),
        ("attack", {"surrogate": "sl", "attacks": "transfer"}, {"surrogate": "rl", "attacks": "transfer"}),
        ("audit", {"budget": "standard", "epsilon": "1"}, {}),
    ],
)
def test_what_means_the_same_has_the_same_content(command: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (COMMANDS[command].parse(given) for given in (one, other))
    assert first.resolved() == second.resolved()
    assert first.content() == second.content()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_content_is_plain_json(command: str) -> None:
    content = COMMANDS[command].parse({}).content()
    assert json.loads(json.dumps(content)) == content


def test_an_attack_beside_changes_no_stages_name_where_there_is_none() -> None:
    plain, both = (COMMANDS["landscape"].parse(given) for given in ({}, {"versus": "pgd-paper"}))
    assert "versus" not in plain.content()
    assert (plain.grid.span, both.grid.span) == (3, 1.5)
    swapped = COMMANDS["landscape"].parse({"attack": "pgd-paper", "versus": "pgd"})
    assert swapped.content()["attacks"] == both.content()["attacks"]
    assert swapped.content() != both.content()


def test_what_came_later_and_is_not_asked_for_changes_no_stages_name() -> None:
    """Published results stay those of their recipes."""
    assert not COMMANDS["landscape"].parse({"space": "weights"}).content().keys() & {"align", "curve", "curve_updates"}
    plain = COMMANDS["attack"].parse({})
    assert "curve" not in plain.content()
    assert COMMANDS["attack"].parse({"curve": True}).content() == plain.content() | {"curve": True}
