"""What stands on the page, in order: sections of words, tables, pictures and landscapes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from gradscope.figures import style
from gradscope.figures.surfaces import surfaces, title
from gradscope.reporting.console import median_distances, read_of_attack
from gradscope.reporting.contents import Contents, ReportPart
from gradscope.reporting.models import models, models_table
from gradscope.reporting.pictures import Picture, picture
from gradscope.reporting.tables import (
    ReportTable,
    attacks_table,
    checks_table,
    claims_table,
    judge_table,
    numbers_table,
    similarity_table,
    spectrum_table,
    statements_table,
    transfer_table,
)
from gradscope.results.metrics import CURVATURE_MATRICES, LANDSCAPE_METRICS
from gradscope.results.schemas import ATTACKS, CURVE, JUDGE, SIMILARITY, SPECTRUM, SUMMARY, TRANSFER


@dataclass(frozen=True)
class Surface:
    """A landscape to turn: what it is of, and what ``figures/templates/surfaces.js`` draws."""

    title: str
    payload: dict[str, Any]


@dataclass
class Block:
    """What one part has to say in a section. ``after``: tables below the pictures; ``folded``: opened on demand."""

    title: str = ""
    words: list[str] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    surface: Surface | None = None
    after: list[ReportTable] = field(default_factory=list)
    folded: list[ReportTable] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.words or self.tables or self.pictures or self.surface or self.after or self.folded)


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    name: str
    title: str
    blocks: list[Block]


def sections(contents: Contents) -> list[Section]:
    """The sections for which there are data: claims, models, trajectories to audit."""
    found = []
    if contents.claims is not None:
        found.append(
            Section(
                "claims", "Claims", [Block(tables=[statements_table(contents.claims), claims_table(contents.claims)])]
            )
        )
    if known := models(contents):
        found.append(Section("models", "Models", [Block(tables=[models_table(known)])]))
    pictures = {part.name: _pictures(part) for part in contents.parts}
    for name, heading, make in _CHAPTERS:
        blocks = [(part, make(part, pictures[part.name])) for part in contents.parts]
        filled = [(part, block) for part, block in blocks if not block.is_empty]
        if len(filled) > 1:
            for part, block in filled:
                block.title = part.title
        if filled:
            found.append(Section(name, heading, [block for _, block in filled]))
    return found


def _pictures(part: ReportPart) -> list[Picture]:
    figures = part.directory / "figures"
    with style.paper():
        return [
            picture(
                drawing,
                part.composed.captions[drawing.name],
                figures / f"{drawing.name}.png",
                address(part, f"figures/{drawing.name}.pdf"),
            )
            for drawing in part.composed.drawings
        ]


def address(part: ReportPart, file: str) -> str:
    """A file of the part as a link from the page beside it."""
    return "./" + quote("/".join(piece for piece in (part.name, file) if piece))


def _chosen(pictures: Iterable[Picture], *prefixes: str) -> list[Picture]:
    return [one for prefix in prefixes for one in pictures if one.name.startswith(prefix)]


def _trajectories(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    order = ("steps-accuracy", "steps-loss", "steps-cosine", "steps-norm", "steps-margin", "steps-", "distribution-")
    elsewhere = ("entropy", *CURVATURE_MATRICES)
    chosen = [
        one for one in dict.fromkeys(_chosen(pictures, *order)) if not any(name in one.name for name in elsewhere)
    ]
    summary = part.table(SUMMARY)
    rows = summary[~summary["metric"].isin([*LANDSCAPE_METRICS, "entropy"])] if _is_trajectory(part) else summary[:0]
    caption = (
        "Every number along the attack, of the images that are right or wrong at that point, with its 95 % interval"
    )
    return Block(pictures=chosen, folded=[numbers_table(rows, "numbers", caption)] if len(rows) else [])


def _is_trajectory(part: ReportPart) -> bool:
    return bool((part.table(SUMMARY)["subset"].astype(str) == "worst/all").any()) or part.manifest.kind == "analysis"


def _entropy(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    summary = part.table(SUMMARY)
    rows = summary[summary["metric"] == "entropy"]
    caption = (
        "Entropy of the softmax in bits: mean over images that are right or wrong at that point, with its 95 % interval"
    )
    tables = [numbers_table(rows, "entropy", caption)] if len(rows) else []
    return Block(pictures=_chosen(pictures, "steps-entropy", "distribution-entropy"), folded=tables)


def _landscapes(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    landscape, summary = part.composed.landscape, part.table(SUMMARY)
    rows = summary if part.manifest.kind == "landscape" else summary[summary["metric"].isin(LANDSCAPE_METRICS)]
    tables = [numbers_table(rows, "landscape", "Every number of the landscape, with its 95 % interval")]
    return Block(
        pictures=_chosen(
            pictures, "landscape-median", "landscape-slices", "landscape-image", "weights-epochs", "weights-"
        ),
        surface=None if landscape is None else Surface(title(landscape), surfaces(landscape, part.composed.settings)),
        folded=tables if len(rows) else [],
    )


def _spectrum(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    rows = part.table(SPECTRUM)
    tables = [spectrum_table(rows)] if len(rows) else []
    chosen = _chosen(pictures, "spectrum-", *(f"distribution-{matrix}" for matrix in CURVATURE_MATRICES))
    return Block(pictures=chosen, folded=tables)


def _attacks(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    rows = part.table(ATTACKS)
    return Block(
        words=[*_adapted(part), *_distances(part), *(_left_out(part) if not part.audits else ())],
        tables=[attacks_table(rows)] if len(rows) and not part.audits else [],
        pictures=_chosen(pictures, "attacks-"),
        folded=[attacks_table(rows)] if len(rows) and part.audits else [],
    )


def _adapted(part: ReportPart) -> Iterator[str]:
    """How the attacks were adapted to the model."""
    for said in part.manifest.adapted:
        yield f"{said[:1].upper()}{said[1:]}."


def _distances(part: ReportPart) -> Iterator[str]:
    """How far the nearest fooling points are."""
    for checkpoint, norm, said in median_distances(part.table(CURVE)):
        yield f"{checkpoint} ({norm}): {said}."


def _left_out(part: ReportPart) -> Iterator[str]:
    """Which attacks were not run, on which models, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in part.manifest.checkpoints:
        for why in dict.fromkeys(entry.skipped.values()):
            names = ", ".join(name for name, its in entry.skipped.items() if its == why)
            found.setdefault((names, why), []).append(entry.label)
    for (names, why), labels in found.items():
        on = "" if len(labels) == len(part.manifest.checkpoints) else f" on {', '.join(labels)}"
        yield f"Not run{on}: {names} ({why})."


def _transfer(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    tables = [
        make(rows)
        for make, table in ((transfer_table, TRANSFER), (similarity_table, SIMILARITY))
        if len(rows := part.table(table))
    ]
    return Block(tables=tables, pictures=_chosen(pictures, "transfer-"))


def _audit(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    chosen = _chosen(pictures, "audit-robustness", "audit-scale", "audit-checks", "audit-evidence")
    if not part.audits:
        return Block(pictures=chosen)
    return Block(words=list(_left_out(part)), pictures=chosen, after=[checks_table(part.audits)])


def _judge(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    rows = part.table(JUDGE)
    if not len(rows):
        return Block()
    judged = [(entry["label"], entry.get("judgement", {})) for entry in part.raw_manifest.get("checkpoints", ())]
    words = [
        f"Read of {judgement['attack']} on {label}: {known}."
        for label, judgement in judged
        if (known := read_of_attack(judgement.get("reading", {})))
    ]
    return Block(words=words, pictures=_chosen(pictures, "judge-"), after=[judge_table(rows)])


_CHAPTERS: tuple[tuple[str, str, Callable[[ReportPart, Sequence[Picture]], Block]], ...] = (
    ("trajectories", "Along the attack", _trajectories),
    ("entropy", "Predictive entropy", _entropy),
    ("landscapes", "Loss landscapes", _landscapes),
    ("spectrum", "Curvature", _spectrum),
    ("attacks", "Attacks", _attacks),
    ("transfer", "Transfer", _transfer),
    ("audit", "Audit", _audit),
    ("judge", "The attack on trial", _judge),
)
