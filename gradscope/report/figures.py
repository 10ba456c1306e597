"""Redraw every figure of a directory of results from its files, with captions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gradscope.errors import GradscopeError
from gradscope.report import style
from gradscope.report.attacks import draw_attacks
from gradscope.report.audit import draw_audit
from gradscope.report.curves import draw_steps
from gradscope.report.distributions import draw_samples, read_samples
from gradscope.report.landscapes import draw_landscapes
from gradscope.report.planes import is_plane
from gradscope.report.style import Drawing
from gradscope.report.surfaces import write_surfaces
from gradscope.report.transfer import draw_transfer
from gradscope.results.audits import read_document, read_exhibits
from gradscope.results.landscape import require_whole
from gradscope.results.rows import ATTACKS, AUDIT, AUDIT_JSON, EXHIBITS, LANDSCAPE, PATH, SAMPLES, STEPS, TRANSFER
from gradscope.results.tables import find_table, read_table, write_json

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
    "smoothing": "{} smoothing copies",
    "targets": "{} target classes",
    "queries": "{} queries",
    "draws": "{} random points",
}
#: Values that go without saying.
_UNSAID = {"restarts": 1, "norm_floor": 0, "smoothing": 1}


class Composed(NamedTuple):
    """The figures of a directory of results, and what its interactive page is made of.

    ``landscape``: rows of LANDSCAPE that span a plane, None where there are none; ``settings``: what the manifest says
    of them.
    """

    drawings: tuple[Drawing, ...]
    captions: dict[str, str]
    landscape: pd.DataFrame | None
    settings: dict[str, Any]


def holds_results(directory: Path) -> bool:
    """Whether there are files in ``directory`` from which figures are drawn."""
    tables = (STEPS, SAMPLES, LANDSCAPE, ATTACKS, TRANSFER)
    return any(find_table(directory / table.file) for table in tables) or _is_audited(directory)


def _is_audited(directory: Path) -> bool:
    return find_table(directory / AUDIT.file) is not None and (directory / AUDIT_JSON).exists()


def draw(directory: Path) -> list[Path]:
    """Draw what the files in ``directory`` hold into ``directory/figures``; the paths of the figures.

    ``figures/captions.json`` says of each, in a sentence, what it shows; ``figures/landscape-3d.html`` says it itself.
    Raises :class:`GradscopeError` where there is nothing to draw from or a file is damaged.
    """
    if not holds_results(directory):
        raise GradscopeError(
            f"DIR: a directory with {STEPS.file} or {SAMPLES.file} (`gradscope analyze` makes them), {LANDSCAPE.file} "
            f"(`gradscope landscape`), {ATTACKS.file} (`gradscope attack`), {TRANSFER.file} (`gradscope transfer`) or "
            f"{AUDIT.file} and {AUDIT_JSON} (`gradscope audit`) is allowed, got {directory}"
        )
    with style.paper():
        return save(compose(directory), directory)


def compose(directory: Path) -> Composed:
    """The figures of ``directory``, not yet saved. Call it inside :func:`gradscope.report.style.paper`."""
    attacks, settings = _settings(directory / "manifest.json")
    steps, samples, landscape, path, attacked, transferred = (
        find_table(directory / table.file) for table in (STEPS, SAMPLES, LANDSCAPE, PATH, ATTACKS, TRANSFER)
    )
    drawings: list[Drawing] = []
    rows = None
    if steps:
        drawings += draw_steps(read_table(steps, STEPS))
    if samples:
        drawings += draw_samples(read_samples(samples))
    if landscape:
        rows = read_table(landscape, LANDSCAPE)
        require_whole(rows)
        drawings += draw_landscapes(rows, read_table(path, PATH) if path else pd.DataFrame(), settings)
    if _is_audited(directory):
        drawings += _draw_audit(directory)
    if attacked:
        drawings += draw_attacks(read_table(attacked, ATTACKS))
    if transferred:
        drawings += draw_transfer(read_table(transferred, TRANSFER))
    captions = {drawing.name: _caption(drawing, attacks) for drawing in drawings}
    return Composed(tuple(drawings), captions, rows if rows is not None and is_plane(rows) else None, settings)


def save(composed: Composed, directory: Path) -> list[Path]:
    """Write the figures and their captions into ``directory/figures``; the paths of the figures."""
    figures = directory / "figures"
    paths = [path for drawing in composed.drawings for path in style.save(drawing.figure, figures, drawing.name)]
    if composed.landscape is not None:
        paths.append(figures / "landscape-3d.html")
        write_surfaces(composed.landscape, composed.settings, paths[-1])
    write_json(figures / "captions.json", composed.captions)
    return paths


def _draw_audit(directory: Path) -> list[Drawing]:
    exhibits = directory / EXHIBITS
    return draw_audit(
        read_table(directory / AUDIT.file, AUDIT),
        read_document(directory / AUDIT_JSON),
        read_exhibits(exhibits) if exhibits.exists() else None,
    )


def _settings(manifest: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of attacks in ``manifest.json`` and what it says of a landscape; empty where they are not there.

    The attack on the networks of a weight landscape is the one called adversarial, what a battery may spend is its
    budget.
    """
    if not manifest.exists():
        return {}, {}
    try:
        content = json.loads(manifest.read_text())
        attacks, landscape = content.get("attacks"), content.get("landscape")
    except (OSError, ValueError, AttributeError) as error:
        raise GradscopeError(f"DIR: {manifest} is not a manifest: {error}") from None
    settings = landscape if isinstance(landscape, dict) else {}
    others = {"adversarial": settings.get("adversarial"), "budget": content.get("budget")}
    return others | (attacks if isinstance(attacks, dict) else {}), settings


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
