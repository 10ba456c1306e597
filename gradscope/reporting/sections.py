"""The sections of a page in order: words, tables, pictures, and landscapes to turn."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from gradscope.figures import style
from gradscope.figures.surfaces import surfaces, title
from gradscope.reporting import sentences
from gradscope.reporting.console import read_of_attack
from gradscope.reporting.contents import Contents, ReportPart
from gradscope.reporting.forest import Forest, forests
from gradscope.reporting.pictures import Picture, picture
from gradscope.reporting.sentences import claims_in_words
from gradscope.reporting.tables import (
    ReportTable,
    attacks_table,
    audits_table,
    checks_table,
    judge_table,
    numbers_table,
    similarity_table,
    spectrum_table,
    transfer_table,
)
from gradscope.results.checks import MEANINGS, Meaning
from gradscope.results.metrics import CURVATURE_MATRICES, LANDSCAPE_METRICS
from gradscope.results.schemas import ATTACKS, JUDGE, SIMILARITY, SPECTRUM, SUMMARY, TRANSFER


@dataclass(frozen=True)
class Surface:
    """A landscape to turn: its title, the data for ``figures/templates/surfaces.js``, and its figures for print."""

    title: str
    payload: dict[str, Any]
    stills: tuple[str, ...] = ()


@dataclass
class Block:
    """What a section shows of one part. ``more`` pictures and ``folded`` tables open on demand."""

    title: str = ""
    words: list[str] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    more: list[Picture] = field(default_factory=list)
    surface: Surface | None = None
    folded: list[ReportTable] = field(default_factory=list)
    meanings: Mapping[str, Meaning] = field(default_factory=dict)
    forests: tuple[Forest, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it shows nothing."""
        return not (self.words or self.tables or self.pictures or self.surface or self.folded or self.forests)


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    name: str
    title: str
    blocks: list[Block]


def sections(contents: Contents) -> list[Section]:
    """Return the sections that have data, in the order of a reader's questions."""
    found = []
    pictures = {part.name: _pictures(part) for part in contents.parts}
    for name, heading, say, make in _CHAPTERS:
        blocks = [(part, make(part, pictures[part.name])) for part in contents.parts]
        filled = [(part, block) for part, block in blocks if not block.is_empty]
        for part, block in filled:
            if say and (sentence := say(part)):
                block.words.insert(0, sentence)
            if len(filled) > 1:
                block.title = part.title
        if filled:
            found.append(Section(name, heading, [block for _, block in filled]))
    if contents.claims is not None and len(contents.claims):
        drawn = tuple(forests(contents.claims))
        found.append(Section("claims", "Claims", [Block(words=[claims_in_words(contents.claims)], forests=drawn)]))
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
    """Return the link from the page to a file of the part."""
    return "./" + quote("/".join(piece for piece in (part.name, file) if piece))


def _chosen(pictures: Iterable[Picture], *prefixes: str) -> list[Picture]:
    return [one for prefix in prefixes for one in pictures if one.name.startswith(prefix)]


def _trajectories(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    elsewhere = ("entropy", "distance", *CURVATURE_MATRICES)
    known = [one for one in pictures if not any(name in one.name for name in elsewhere)]
    panel = _chosen(known, "steps-panel")
    singles = () if panel else ("steps-accuracy", "steps-cosine", "steps-norm", "steps-loss")
    chosen = [*panel, *_chosen(known, *singles, "distribution-norm", "distribution-margin")]
    others = [one for one in _chosen(known, "steps-", "distribution-") if one not in chosen]
    summary = part.table(SUMMARY)
    rows = summary[~summary["metric"].isin([*LANDSCAPE_METRICS, "entropy"])] if _is_trajectory(part) else summary[:0]
    caption = (
        "Every number along the attack, of the images that are right or wrong at that point, with its 95 % interval"
    )
    folded = [numbers_table(rows, "numbers", caption)] if len(rows) else []
    return Block(pictures=chosen, more=others, folded=folded)


def _distance(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    names = ("attacks-curve", "audit-scale", "distribution-distance", "distribution-linear-distance")
    return Block(pictures=_chosen(pictures, *names))


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
    order = ("landscape-median", "landscape-slices", "landscape-image", "weights-epochs", "weights-")
    chosen = list(dict.fromkeys(_chosen(pictures, *order)))
    stills = tuple(one.name for one in chosen if one.name.endswith("-3d"))
    images = [one for one in chosen if one.name.startswith("landscape-image")]
    chosen = [one for one in chosen if one not in images[1:]]
    return Block(
        pictures=chosen,
        more=images[1:],
        surface=None
        if landscape is None
        else Surface(title(landscape), surfaces(landscape, part.composed.settings), stills),
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
        words=[*_adapted(part), *(_left_out(part) if not part.audits else ())],
        pictures=_chosen(pictures, "attacks-accuracy", "attacks-epsilon"),
        folded=[attacks_table(rows)] if len(rows) else [],
    )


def _adapted(part: ReportPart) -> Iterator[str]:
    """Yield how the attacks were adapted to the model."""
    for said in part.manifest.adapted:
        yield f"{said[:1].upper()}{said[1:]}."


def _left_out(part: ReportPart) -> Iterator[str]:
    """Yield which attacks did not run, on which models, and why."""
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
    return Block(pictures=_chosen(pictures, "transfer-"), folded=tables)


def _audit(part: ReportPart, pictures: Sequence[Picture]) -> Block:
    chosen, examples = _chosen(pictures, "audit-checks", "audit-robustness"), _chosen(pictures, "audit-evidence")
    if not part.audits:
        return Block(pictures=[*chosen, *examples])
    used = dict.fromkeys(check.id for audit in part.audits for check in audit.checks)
    return Block(
        words=list(_left_out(part)),
        tables=[audits_table(part.audits)],
        pictures=chosen,
        more=examples,
        folded=[checks_table(part.audits)],
        meanings={code: MEANINGS[code] for code in used if code in MEANINGS},
    )


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
    return Block(words=words, pictures=_chosen(pictures, "judge-"), folded=[judge_table(rows)])


_Make = Callable[[ReportPart, Sequence[Picture]], Block]
_CHAPTERS: tuple[tuple[str, str, Callable[[ReportPart], str] | None, _Make], ...] = (
    ("judge", "The attack on trial", sentences.judge, _judge),
    ("trajectories", "Along the attack", sentences.trajectories, _trajectories),
    ("distance", "Scale and distance", sentences.scale_and_distance, _distance),
    ("landscapes", "Loss landscapes", sentences.landscapes, _landscapes),
    ("spectrum", "Curvature", sentences.spectrum, _spectrum),
    ("transfer", "Transfer", sentences.transfer, _transfer),
    ("attacks", "Attacks", sentences.attacks, _attacks),
    ("audit", "Audit", sentences.audit, _audit),
    ("entropy", "Predictive entropy", sentences.entropy, _entropy),
)
