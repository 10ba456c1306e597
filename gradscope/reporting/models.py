"""The table of models: who they are, how they were trained, and what is known of their accuracy from any part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradscope.reporting.contents import Contents, ReportPart
from gradscope.reporting.tables import NOTHING, Cell, Heading, ReportTable, count, share, words
from gradscope.results.schemas import ATTACKS, IDENTITY, JUDGE, SUMMARY, TRANSFER

_WHO = [column.name for column in IDENTITY if column.name != "attack"]
_SHORT = 8


@dataclass
class ReportedModel:
    """A checkpoint and its accuracies. ``under``: what it is under, to value, interval and images."""

    label: str
    mode: str
    dataset: str
    arch: str
    seed: str
    sha256: str = ""
    source: str = ""
    epochs: int | None = None
    clean: dict[str, Any] = field(default_factory=dict)
    under: dict[str, dict[str, Any]] = field(default_factory=dict)


def models(contents: Contents) -> list[ReportedModel]:
    """Every checkpoint once, in order of appearance; one label with two files or data sets is two models."""
    found: dict[tuple[str, ...], ReportedModel] = {}
    for part in contents.parts:
        entries = {entry.label: entry for entry in part.manifest.checkpoints}
        for who in _who(part):
            entry = entries.get(who[0])
            same = next((key for key in found if key[:-1] == who), None) if entry is None else None
            key = same or (*who, (entry.fingerprint or entry.sha256 or entry.source or "") if entry else "")
            model = found.setdefault(key, ReportedModel(*who))
            if entry:
                model.sha256, model.source = entry.sha256 or "", entry.source or ""
                model.epochs = entry.epochs
            _add_accuracies(model, part)
    return list(found.values())


def _who(part: ReportPart) -> Iterator[tuple[str, str, str, str, str]]:
    """Identities of all checkpoints of a part, each once."""
    tables = [rows[_WHO] for rows in part.tables.values() if len(rows)]
    landscape = part.composed.landscape
    tables += [landscape[_WHO]] if landscape is not None else []
    if not tables:
        return
    rows = pd.concat(tables, ignore_index=True).drop_duplicates()
    for label, mode, dataset, arch, seed in rows.itertuples(index=False, name=None):
        yield str(label), str(mode), str(dataset), str(arch), "" if pd.isna(seed) else str(int(seed))


def _add_accuracies(model: ReportedModel, part: ReportPart) -> None:
    """What a part says of the model's accuracy: clean where it rests on more images, and under its attacks."""
    mine = {name: rows[_is(rows, model)] for name, rows in part.tables.items()}
    for row in _rows(mine.get(SUMMARY.file), "accuracy"):
        if row["subset"] == "clean/all":
            _more(model.clean, row)
        elif row["subset"] == "worst/all":
            ball = part.manifest.ball(str(row["attack"]))
            model.under.setdefault(_under(f"{row['attack']}", ball, part), dict(row))
    attacks = mine.get(ATTACKS.file)
    for row in _rows(attacks, "accuracy"):
        if row["attack"] == "none":
            _more(model.clean, row)
    if not part.audits:
        last = {(row["norm"], row["epsilon"]): row for row in _rows(attacks, "robust-accuracy")}
        for (norm, epsilon), row in last.items():
            model.under.setdefault(_under("all attacks", f"{norm} {epsilon:.4g}", part), dict(row))
    for row in mine[TRANSFER.file].to_dict("records") if TRANSFER.file in mine else []:
        if not row["source"]:
            _more(model.clean, {**row, "value": row["accuracy"]})
    for row in mine[JUDGE.file].to_dict("records") if JUDGE.file in mine else []:
        if row["role"] == "clean":
            _more(model.clean, {**row, "value": row["left"]})
    for one in part.audits:
        if one.checkpoint == model.label:
            bound = one.robust_accuracy
            row = {"value": bound.upper_bound, "ci_low": bound.ci_low, "ci_high": bound.ci_high, "n": bound.n}
            ball = f"{one.threat.norm} {one.threat.epsilon:.4g}"
            model.under.setdefault(_under("audit", ball, part), row)
            _more(model.clean, {**one.clean_accuracy.model_dump(), "n": bound.n})


def _is(rows: pd.DataFrame, model: ReportedModel) -> pd.Series:
    return (rows["checkpoint"] == model.label) & (rows["dataset"] == model.dataset) & (rows["arch"] == model.arch)


def _rows(rows: pd.DataFrame | None, metric: str) -> list[dict[Any, Any]]:
    return [] if rows is None else rows[rows["metric"] == metric].to_dict("records")


def _more(known: dict[str, Any], row: dict[Any, Any]) -> None:
    """Take ``row`` where it rests on more images than what is known."""
    if row["n"] > known.get("n", 0):
        known.update({key: row[key] for key in ("value", "ci_low", "ci_high", "n")})


def _under(attack: str, ball: str, part: ReportPart) -> str:
    """What an accuracy is under, in words: part and all where the study has several parts of a kind."""
    kind = part.name.partition("-")[2]
    return ", ".join(piece for piece in (attack, ball, kind) if piece)


def models_table(found: Sequence[ReportedModel]) -> ReportTable:
    """The table of models."""
    under = list(dict.fromkeys(name for model in found for name in model.under))
    headings = (
        Heading("Model"),
        Heading("Mode"),
        Heading("Data"),
        Heading("Architecture"),
        Heading("Seed", "number"),
        Heading("Epochs", "number"),
        Heading("Clean", "number", "accuracy"),
        *(Heading(*_split(name)) for name in under),
        Heading("SHA-256"),
    )
    rows = tuple(
        (
            words(model.label),
            words(model.mode),
            words(model.dataset),
            words(model.arch),
            Cell(model.seed or NOTHING, key=float(model.seed)) if model.seed else Cell(NOTHING),
            count(model.epochs),
            _accuracy(model.clean),
            *(_accuracy(model.under.get(name, {})) for name in under),
            words(model.sha256[:_SHORT]),
        )
        for model in found
    )
    return ReportTable("models", _caption(found), headings, rows)


def _split(name: str) -> tuple[str, Any, str]:
    attack, _, ball = name.partition(", ")
    return attack, "number", ball


def _accuracy(row: dict[str, Any]) -> Cell:
    return share(row.get("value"), row.get("ci_low", float("nan")), row.get("ci_high", float("nan")))


def _caption(found: Sequence[ReportedModel]) -> str:
    sizes = sorted({int(row["n"]) for model in found for row in (model.clean, *model.under.values()) if row})
    images = f", n = {' to '.join(f'{n:,}' for n in dict.fromkeys((sizes[0], sizes[-1])))} test images" if sizes else ""
    parts = [f"The models, and the share of test images each gets right with its 95 % Wilson interval{images}"]
    names = {name.partition(",")[0] for model in found for name in model.under}
    if names - {"all attacks", "audit"}:
        parts.append("under an attack: right when clean and at every iterate of every start")
    if "all attacks" in names:
        parts.append("all attacks: right when clean and under every attack that was run")
    if "audit" in names:
        parts.append("audit: the lowest that the audit reached")
    return "; ".join(parts) + ("; every accuracy under attack is an upper bound" if names else "")
