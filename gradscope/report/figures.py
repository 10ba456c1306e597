"""Redraw every figure of a directory of results from its CSV files, with captions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeError
from gradscope.report import style
from gradscope.report.curves import draw_steps
from gradscope.report.distributions import draw_samples, read_samples
from gradscope.report.style import Drawing
from gradscope.results.rows import SAMPLES, STEPS
from gradscope.results.tables import read_table, write_json

_BOXES = {True: "inside [0, 1]", False: "no box"}
_REDUCTIONS = {"sum": "summed loss", "mean": "batch-mean loss"}
_WORDS = {
    "norm": "{}",
    "epsilon": "epsilon {}",
    "step_size": "step size {}",
    "steps": "{} steps",
    "restarts": "restarts {}",
    "start": "start {}",
    "loss": "loss {}",
    "norm_floor": "step's norm floored at {}",
    "precision": "{}",
}
#: Values that go without saying.
_UNSAID = {"restarts": 1, "norm_floor": 0}


def draw(directory: Path) -> list[Path]:
    """Draw what the CSV files in ``directory`` hold into ``directory/figures``; the paths of the figures.

    ``figures/captions.json`` says of each, in a sentence, what it shows. Raises :class:`GradscopeError` where there
    is nothing to draw from or a file is damaged.
    """
    steps, samples = directory / STEPS.file, directory / SAMPLES.file
    if not steps.exists() and not samples.exists():
        raise GradscopeError(
            f"DIR: a directory with {STEPS.file} or {SAMPLES.file} is allowed (`gradscope analyze` makes them), "
            f"got {directory}"
        )
    settings = _attack_settings(directory / "manifest.json")
    with style.paper():
        drawings: list[Drawing] = []
        if steps.exists():
            drawings += draw_steps(read_table(steps, STEPS))
        if samples.exists():
            drawings += draw_samples(read_samples(samples))
        figures = directory / "figures"
        paths = [path for drawing in drawings for path in style.save(drawing.figure, figures, drawing.name)]
    write_json(figures / "captions.json", {drawing.name: _caption(drawing, settings) for drawing in drawings})
    return paths


def _attack_settings(manifest: Path) -> dict[str, Any]:
    """The table of attacks in ``manifest.json``; empty where there is no such file or table."""
    if not manifest.exists():
        return {}
    try:
        attacks = json.loads(manifest.read_text()).get("attacks")
    except (OSError, ValueError, AttributeError) as error:
        raise GradscopeError(f"DIR: {manifest} is not a manifest: {error}") from None
    return attacks if isinstance(attacks, dict) else {}


def _caption(drawing: Drawing, settings: Mapping[str, Any]) -> str:
    parts = [f"{name}: {described}" for name in drawing.attacks if (described := describe_attack(settings.get(name)))]
    return "; ".join([drawing.caption, *parts]) + "."


def describe_attack(settings: object) -> str:
    """An attack's settings in words, those of :class:`gradscope.config.PGD` that are there; else empty."""
    if not isinstance(settings, Mapping):
        return ""
    known = {key: settings[key] for key in _WORDS if settings.get(key) not in (None, _UNSAID.get(key))}
    parts = [_WORDS[key].format(f"{value:.4g}" if isinstance(value, float) else value) for key, value in known.items()]
    if "box" in settings:
        parts.append(_BOXES[bool(settings["box"])])
    if settings.get("reduction") in _REDUCTIONS:
        parts.append(_REDUCTIONS[settings["reduction"]])
    return ", ".join(parts)
