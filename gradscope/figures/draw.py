"""Draw every figure of a directory of results from its files, with captions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from gradscope.errors import GradscopeError, lookup
from gradscope.figures import style
from gradscope.figures.attack import draw_attacks
from gradscope.figures.audit import draw_audit
from gradscope.figures.curve import draw_curves
from gradscope.figures.distributions import draw_samples, read_samples
from gradscope.figures.epochs import draw_epochs
from gradscope.figures.judge import draw_judge
from gradscope.figures.landscape import draw_landscapes
from gradscope.figures.planes import is_plane
from gradscope.figures.scale import draw_scale
from gradscope.figures.spectrum import draw_spectra
from gradscope.figures.steps import draw_steps
from gradscope.figures.style import Drawing
from gradscope.figures.surfaces import write_surfaces
from gradscope.figures.transfer import draw_similarity, draw_transfer
from gradscope.reading import read_json
from gradscope.results.audits import ExampleImages, read_example_images
from gradscope.results.files import write_json
from gradscope.results.landscape import require_whole
from gradscope.results.manifest import MANIFEST, read_object
from gradscope.results.schemas import (
    ATTACKS,
    AUDIT,
    AUDIT_JSON,
    CURVE,
    DENSITY,
    EIGENVALUES,
    EPOCHS,
    EXAMPLE_IMAGES,
    JUDGE,
    LANDSCAPE,
    PATH,
    SAMPLES,
    SCALE,
    SIMILARITY,
    SPECTRUM,
    STEPS,
    TRANSFER,
)
from gradscope.results.tables import find_table, read_table, tell_changes

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
#: Values that captions leave out.
_UNSAID = {"restarts": 1, "norm_floor": 0, "smoothing": 1}


#: Tables that figures are drawn from; an audit's come in addition.
_DRAWN = (
    *(STEPS, SAMPLES, LANDSCAPE, PATH, EPOCHS, SPECTRUM, EIGENVALUES, DENSITY),
    *(ATTACKS, CURVE, TRANSFER, SIMILARITY, SCALE, JUDGE),
)

#: How the names of figures begin, in order of importance.
_MAIN = (
    *(
        "audit-robustness",
        "attacks-curve",
        "judge-",
        "attacks-epsilon",
        "attacks-",
        "transfer-",
        "landscape-median",
        "landscape-",
        "weights-",
        "spectrum-density",
        "spectrum-",
    ),
    *("steps-cosine", "steps-", "distribution-", "audit-"),
)


@dataclass(frozen=True)
class Sources:
    """Tables and documents that figures are drawn from.

    ``tables``: rows by file, such as ``steps.csv``, with the types of :func:`gradscope.results.tables.read_table`.
    ``manifest``, ``audit``: the parsed ``manifest.json`` and ``audit.json``; ``examples``: arrays of ``evidence.npz``.
    """

    tables: Mapping[str, pd.DataFrame]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    audit: Any = None
    examples: ExampleImages | None = None

    @property
    def landscape(self) -> dict[str, Any]:
        """The manifest's mapping landscape; empty if it has none."""
        found = self.manifest.get("landscape")
        return found if isinstance(found, dict) else {}

    @property
    def attacks(self) -> dict[str, Any]:
        """The manifest's attacks by name.

        "adversarial" is the attack in a weight landscape, "budget" the effort that a set of attacks may spend.
        """
        found = self.manifest.get("attacks")
        others = {"adversarial": self.landscape.get("adversarial"), "budget": self.manifest.get("budget")}
        return others | (found if isinstance(found, dict) else {})


class Composed(NamedTuple):
    """The figures of a directory of results with captions, and the data of its interactive page.

    ``landscape``: rows of LANDSCAPE that span a plane, or None; ``settings``: the manifest's mapping landscape.
    """

    drawings: tuple[Drawing, ...]
    captions: dict[str, str]
    landscape: pd.DataFrame | None
    settings: dict[str, Any]


def holds_results(directory: Path) -> bool:
    """Whether ``directory`` has files that figures can be drawn from."""
    tables = (STEPS, SAMPLES, LANDSCAPE, SPECTRUM, ATTACKS, TRANSFER, JUDGE)
    return any(find_table(directory / table.file) for table in tables) or _is_audited(directory)


def _is_audited(directory: Path) -> bool:
    return find_table(directory / AUDIT.file) is not None and (directory / AUDIT_JSON).exists()


def draw(directory: Path, *, animate: bool = False) -> list[Path]:
    """Draw all figures of a directory of results into ``directory/figures``; return their paths.

    ``figures/captions.json`` holds a caption for each, except ``figures/landscape-3d.html``, which contains its own.
    With ``animate`` each figure that shows two attacks step by step is also written as a GIF. Raises
    :class:`GradscopeError` if there is nothing to draw or to animate, or if a file is damaged.
    """
    if not holds_results(directory):
        raise GradscopeError(
            f"directory must hold {STEPS.file} or {SAMPLES.file} (`gradscope analyze` makes them), {LANDSCAPE.file} "
            f"(`gradscope landscape`), {SPECTRUM.file} (`gradscope spectrum`), {ATTACKS.file} (`gradscope attack`), "
            f"{TRANSFER.file} (`gradscope transfer`), "
            f"{JUDGE.file} (`gradscope judge`) or {AUDIT.file} and {AUDIT_JSON} (`gradscope audit`), got {directory}"
        )
    with style.paper():
        composed = compose(read_sources(directory))
        moving = [drawing for drawing in composed.drawings if drawing.moving] if animate else []
        if animate and not moving:
            raise GradscopeError(
                "animate must be left out unless the directory holds planes of two attacks, with path.csv (`gradscope "
                f"landscape CKPT --versus ATTACK` makes them), got {directory}"
            )
        paths = save(composed, directory)
        if moving:
            from gradscope.figures.animation import save_animation

            paths += [save_animation(drawing, directory / "figures") for drawing in moving]
        return paths


def figure(sources: Sources, name: str | None = None) -> Figure:
    """Make the figure called ``name``, such as ``steps-cosine``, or by default the most important; write no file.

    Raises :class:`GradscopeError` if ``sources`` give no figure of that name, or none at all.
    """
    with style.paper():
        found = {drawing.name: drawing.figure for drawing in drawings(sources)}
    if not found:
        raise GradscopeError(f"there is no figure of {', '.join(sources.tables) or 'no tables'}")
    return lookup(found, min(found, key=_rank) if name is None else name, "name")


def _rank(name: str) -> int:
    return next((place for place, start in enumerate(_MAIN) if name.startswith(start)), len(_MAIN))


def read_sources(directory: Path) -> Sources:
    """Read the tables and documents that the figures of ``directory`` are drawn from."""
    tables = {
        table.file: read_samples(found) if table is SAMPLES else read_table(found, table)
        for table in _DRAWN
        if (found := find_table(directory / table.file))
    }
    audit = examples = None
    if _is_audited(directory):
        tables[AUDIT.file] = read_table(directory / AUDIT.file, AUDIT)
        audit = read_json(directory / AUDIT_JSON)
        examples = read_example_images(directory / EXAMPLE_IMAGES) if (directory / EXAMPLE_IMAGES).exists() else None
    path = directory / MANIFEST
    manifest = read_object(path) if path.exists() else {}
    tell_changes(directory, manifest)
    return Sources(tables, manifest, audit, examples)


def drawings(sources: Sources) -> Iterator[Drawing]:
    """Yield the figures of ``sources`` one after the other. Call it inside :func:`gradscope.figures.style.paper`."""
    tables = sources.tables
    if STEPS.file in tables:
        yield from draw_steps(tables[STEPS.file])
    if SAMPLES.file in tables:
        yield from draw_samples(tables[SAMPLES.file])
    if LANDSCAPE.file in tables:
        require_whole(tables[LANDSCAPE.file])
        yield from draw_landscapes(
            tables[LANDSCAPE.file], tables.get(PATH.file, pd.DataFrame()), sources.landscape, sources.attacks
        )
    if EPOCHS.file in tables:
        yield draw_epochs(tables[EPOCHS.file])
    if {SPECTRUM.file, EIGENVALUES.file, DENSITY.file} <= tables.keys():
        yield from draw_spectra(*(tables[table.file] for table in (SPECTRUM, EIGENVALUES, DENSITY)))
    if AUDIT.file in tables and sources.audit is not None:
        yield from draw_audit(tables[AUDIT.file], sources.audit, sources.examples)
    if SCALE.file in tables:
        yield from draw_scale(tables[SCALE.file])
    if JUDGE.file in tables:
        yield from draw_judge(tables[JUDGE.file])
    if ATTACKS.file in tables:
        yield from draw_attacks(tables[ATTACKS.file])
    if CURVE.file in tables:
        yield from draw_curves(tables[CURVE.file], tables.get(ATTACKS.file))
    if TRANSFER.file in tables:
        yield from draw_transfer(tables[TRANSFER.file])
    if SIMILARITY.file in tables:
        yield from draw_similarity(tables[SIMILARITY.file])


def compose(sources: Sources) -> Composed:
    """Make the figures of ``sources`` without saving them. Call it inside :func:`gradscope.figures.style.paper`."""
    figures = tuple(drawings(sources))
    captions = {drawing.name: _caption(drawing, sources.attacks) for drawing in figures}
    rows = sources.tables.get(LANDSCAPE.file)
    return Composed(figures, captions, rows if rows is not None and is_plane(rows) else None, sources.landscape)


def save(composed: Composed, directory: Path) -> list[Path]:
    """Write the figures and their captions into ``directory/figures``; return the paths of the figures."""
    figures = directory / "figures"
    paths = [path for drawing in composed.drawings for path in style.save(drawing.figure, figures, drawing.name)]
    if composed.landscape is not None:
        paths.append(figures / "landscape-3d.html")
        write_surfaces(composed.landscape, composed.settings, paths[-1])
    write_json(figures / "captions.json", composed.captions)
    return paths


def _caption(drawing: Drawing, settings: Mapping[str, Any]) -> str:
    parts = [f"{name}: {described}" for name in drawing.attacks if (described := describe_attack(settings.get(name)))]
    return "; ".join([drawing.caption, *parts]) + "."


def describe_attack(settings: object) -> str:
    """Describe an attack's settings in words: the fields of :class:`gradscope.config.PGD` that are present; else ""."""
    if not isinstance(settings, Mapping):
        return ""
    present = {key: settings[key] for key in _WORDS if settings.get(key) not in (None, _UNSAID.get(key))}
    parts = [
        _WORDS[key].format(f"{value:.4g}" if isinstance(value, float) else value) for key, value in present.items()
    ]
    if "box" in settings:
        parts.append(_BOXES[bool(settings["box"])])
    if reduction := _REDUCTIONS.get(str(settings.get("reduction"))):
        parts.append(reduction)
    return ", ".join(parts)
