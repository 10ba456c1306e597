"""Tables for readers, shared by the page and LaTeX: headings, and cells with the value that they sort by."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any, Literal

import pandas as pd

from gradscope.figures.checks import STATES, state_of
from gradscope.results.audits import NO_PROOF, NONE_FOUND, AuditOf
from gradscope.results.schemas import FIRES_BELOW, SIMILARITY, TRANSFER

#: The tone of an audit's verdict, the gravest first.
AUDIT_TONES = {"masking found": "accuses", "set-up invalid": "fired", "inconclusive": "abstained", NONE_FOUND: "passed"}
#: The tone of an audit's verdict on a claimed robust accuracy.
CLAIM_TONES = {"refuted": "accuses", "not refuted within this budget": "passed", "inconclusive": "abstained"}
#: The tone of a verdict on a claim.
VERDICT_TONES = {"supported": "passed", "not supported": "accuses", "not tested": "abstained"}
#: A matrix of more columns has no room for intervals.
_MOST_INTERVALS = 8
#: Shown in place of an absent value.
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Heading:
    """The head of a column. ``kind``: "long" for sentences."""

    text: str
    kind: Literal["text", "number", "long"] = "text"
    aside: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, an interval or a note in smaller letters, and the number that it sorts by.

    ``code``: the check that the text begins with; a page links it to its meaning. ``track``: an effect, drawn above
    the text.
    """

    text: str
    aside: str = ""
    key: float = nan
    tone: str = ""
    code: str = ""
    track: Any = None

    @property
    def sorts_by(self) -> str:
        """The key as JavaScript reads it, empty without one."""
        return repr(self.key) if isfinite(self.key) else ""


@dataclass(frozen=True)
class ReportTable:
    """A table. ``name``: what its files are called."""

    name: str
    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]


def words(value: object) -> Cell:
    """Return a cell with the text, or a dash without any."""
    return Cell(str(value) if value is not None and not is_missing(value) and str(value) else NOTHING)


def number(value: float | None, unit: str = "", low: float = nan, high: float = nan) -> Cell:
    """Return a cell with a number of three significant digits and its interval."""
    if value is None or is_missing(value):
        return Cell(NOTHING)
    suffix = "" if unit in ("", "-") else f" {unit}"
    return Cell(f"{_digits(value)}{suffix}", _interval(_digits, low, high), float(value))


def count(value: float | None) -> Cell:
    """Return a cell with a whole number."""
    return Cell(NOTHING) if value is None or is_missing(value) else Cell(f"{int(value):,}", key=float(value))


def share(value: float | None, low: float = nan, high: float = nan, note: str = "") -> Cell:
    """Return a cell with a share in per cent and its interval."""
    if value is None or is_missing(value):
        return Cell(NOTHING)
    aside = ", ".join(part for part in (_interval(_percent, low, high), note) if part)
    return Cell(f"{_percent(value)} %", aside, float(value))


def is_missing(value: object) -> bool:
    """Tell whether a value of a table is absent."""
    return value is pd.NA or (isinstance(value, float) and value != value)


def whole_percent(value: float) -> str:
    """Write a share in per cent for a sentence: whole from one per cent on, with one digit below."""
    shown = f"{100 * value:.0f}" if value >= 0.01 or value == 0 else f"{100 * value:.1f}"
    return f"{shown}\N{NO-BREAK SPACE}%"


def _interval(shown: Any, low: float, high: float) -> str:
    return "" if is_missing(low) or is_missing(high) else f"[{shown(low)}, {shown(high)}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "\N{MINUS SIGN}")


def _digits(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def statements_table(claims: pd.DataFrame) -> ReportTable:
    """Count the verdicts of each claim in rows of the table CLAIMS."""
    verdicts = ("supported", "not supported", "not tested")
    headings = (
        Heading("Claim"),
        Heading("Statement", "long"),
        *(Heading(name.capitalize(), "number") for name in verdicts),
    )
    rows = []
    for (claim, statement), tests in claims.groupby(["claim", "statement"], sort=False):
        counts = (int((tests["verdict"] == name).sum()) for name in verdicts)
        rows.append((words(claim), words(statement), *(count(found) for found in counts)))
    return ReportTable(
        "statements", "The claims, and how many tests of each came out in which way", headings, tuple(rows)
    )


def claims_table(claims: pd.DataFrame, *, with_reasons: bool = True) -> ReportTable:
    """Show rows of the table CLAIMS: the test, the effect, and the paper's figure beside ours."""
    headings = (
        Heading("Claim"),
        Heading("Test", "long"),
        Heading("Verdict"),
        Heading("Effect", "number", "over images"),
        Heading("Over seeds", "number"),
        Heading("Paper", "long"),
        Heading("p", "number", "adjusted"),
        Heading("Images", "number", "\N{MULTIPLICATION SIGN} seeds"),
        Heading("Why", "long"),
    )
    rows = tuple(_claim(row) for row in claims.to_dict("records"))
    kept = len(headings) if with_reasons else len(headings) - 1
    return ReportTable("claims", _CLAIMS, headings[:kept], tuple(row[:kept] for row in rows))


_CLAIMS = (
    "The tests of the claims. Effect: as measured, with its 95 % interval over images; over seeds: the 95 % "
    "interval over training seeds, where there are two or more; paper: the figure that the paper gives"
)


def _claim(row: Mapping[Any, Any]) -> tuple[Cell, ...]:
    where = ", ".join(str(row[key]) for key in ("dataset", "arch") if row[key])
    predicted = f"predicted {row['direction']}" if row["direction"] else ""
    seeds = _interval(_digits, row["seeds_low"], row["seeds_high"])
    tone = VERDICT_TONES.get(str(row["verdict"]), "abstained")
    images = "" if is_missing(row["n"]) else f"{int(row['n']):,} \N{MULTIPLICATION SIGN} {_whole(row['seeds'])}"
    return (
        words(row["claim"]),
        Cell(words(row["statistic"]).text, "; ".join(part for part in (predicted, where) if part)),
        Cell(str(row["verdict"]), tone=tone),
        effect(row),
        Cell(seeds or NOTHING, key=float(row["seeds_low"]) if seeds else nan),
        words(row["paper"]),
        number(row["p_value"]),
        Cell(images or NOTHING, key=float(row["n"]) if images else nan),
        words(row["why"]),
    )


def effect(row: Mapping[Any, Any]) -> Cell:
    """Return the effect in a row of the table CLAIMS with its interval over images."""
    return number(row["value"], str(row["unit"]), row["ci_low"], row["ci_high"])


def _whole(value: float) -> str:
    return "?" if is_missing(value) else str(int(value))


def attacks_table(attacks: pd.DataFrame, name: str = "attacks") -> ReportTable:
    """Show rows of the table ATTACKS: a row for each checkpoint, ball and attack."""
    headings = (
        Heading("Model"),
        Heading("Ball"),
        Heading("Attack"),
        Heading("Right under it", "number", "of those attacked"),
        Heading("Robust so far", "number", "of all images"),
        Heading("Attacked", "number", "images"),
        Heading("Forward", "number", "passes an image"),
        Heading("Backward", "number", "passes an image"),
        Heading("Seconds", "number"),
    )
    rows = []
    for (checkpoint, norm, epsilon, attack), ours in attacks.groupby(
        ["checkpoint", "norm", "epsilon", "attack"], sort=False
    ):
        alone, so_far = _row(ours, "accuracy"), _row(ours, "robust-accuracy")
        attacked = _row(ours, "forward") or (alone if alone.get("subset") == "attacked" else {})
        rows.append(
            (
                words(checkpoint),
                Cell(f"{norm} {epsilon:.4g}"),
                Cell("clean" if attack == "none" else str(attack)),
                share(alone.get("value"), alone.get("ci_low", nan), alone.get("ci_high", nan), _of_all(alone)),
                share(so_far.get("value"), so_far.get("ci_low", nan), so_far.get("ci_high", nan)),
                count(attacked.get("n")),
                number(_row(ours, "forward").get("value")),
                number(_row(ours, "backward").get("value")),
                number(_row(ours, "seconds").get("value")),
            )
        )
    return ReportTable(name, _ATTACKS, headings, tuple(rows))


_ATTACKS = (
    "Accuracy under each attack, in the order of the runs. Robust so far: right when clean, under this attack and "
    "under all above it, an upper bound of the robust accuracy; 95 % Wilson intervals over images"
)


def _row(rows: pd.DataFrame, metric: str) -> dict[Any, Any]:
    """Return the first row of a metric, empty without one."""
    found = rows[rows["metric"] == metric]
    return found.iloc[0].to_dict() if len(found) else {}


def _of_all(row: Mapping[Any, Any]) -> str:
    return "of all" if row.get("subset") == "all" else ""


def transfer_table(transfer: pd.DataFrame) -> ReportTable:
    """Show rows of the table TRANSFER as a matrix: sources by targets."""
    targets = [str(name) for name in transfer["checkpoint"].unique()]
    cells = {
        (str(row["source"]), str(row["checkpoint"])): _short(
            share(row["accuracy"], row["ci_low"], row["ci_high"]), len(targets)
        )
        for row in transfer.to_dict("records")
    }
    rows = tuple(
        (Cell(source or "clean images"), *(cells.get((source, target), Cell(NOTHING)) for target in targets))
        for source in (str(name) for name in transfer["source"].unique())
    )
    found = transfer[["norm", "epsilon"]].drop_duplicates().itertuples(index=False, name=None)
    balls = " and ".join(f"{norm}, epsilon {epsilon:.4g}" for norm, epsilon in found)
    caption = (
        f"Accuracy of each target (column) on the examples made on each source (row), {balls}; "
        f"95 % Wilson intervals over images{_elsewhere(TRANSFER.file, len(targets))}"
    )
    return ReportTable("transfer", caption, (Heading("Made on"), *(Heading(name, "number") for name in targets)), rows)


def _short(cell: Cell, columns: int) -> Cell:
    """Drop the interval of a matrix cell where the columns are too many for it."""
    return replace(cell, aside="") if columns > _MOST_INTERVALS else cell


def _elsewhere(file: str, columns: int) -> str:
    return f" are in {file}" if columns > _MOST_INTERVALS else ""


def similarity_table(similarity: pd.DataFrame) -> ReportTable:
    """Show rows of the table SIMILARITY as a matrix of models, with each model's curvature below."""
    names = [str(name) for name in similarity["checkpoint"].unique()]
    cells = {
        (str(row["other"]), str(row["checkpoint"])): _short(
            number(row["value"], low=row["ci_low"], high=row["ci_high"]), len(names)
        )
        for row in similarity.to_dict("records")
    }
    rows = tuple(
        (words(other or "relative curvature"), *(cells.get((other, name), Cell(NOTHING)) for name in names))
        for other in (str(name) for name in similarity["other"].unique())
    )
    caption = (
        "Mean cosine of the gradients of two models' margins at the same clean images, and below it each model's "
        f"relative curvature, per unit pixel range; 95 % intervals over images{_elsewhere(SIMILARITY.file, len(names))}"
    )
    return ReportTable("similarity", caption, (Heading("Model"), *(Heading(name, "number") for name in names)), rows)


def checks_table(audits: Iterable[AuditOf]) -> ReportTable:
    """Show every check of every audit."""
    headings = (
        Heading("Model"),
        Heading("Check"),
        Heading("Outcome"),
        Heading("Value", "number"),
        Heading("Fires", "number"),
        Heading("p", "number", "adjusted"),
        Heading("What it saw", "long"),
        Heading("What to do next", "long"),
    )
    rows = []
    for one in audits:
        for made in one.checks:
            state = state_of({"state": made.state, "accuses": made.accuses})
            below = "<" if made.id in FIRES_BELOW else ">"
            threshold = number(made.threshold)
            rows.append(
                (
                    words(one.checkpoint),
                    Cell(f"{made.id} {made.name}", code=made.id),
                    Cell(f"{STATES[state].symbol} {_OUTCOMES[state]}", tone=state),
                    number(made.value),
                    threshold if threshold.text == NOTHING else Cell(f"{below} {threshold.text}", key=threshold.key),
                    number(made.p_value),
                    words(made.cause),
                    words(made.next_step),
                )
            )
    return ReportTable("audit", _CHECKS, headings, tuple(rows))


def audits_table(audits: Iterable[AuditOf]) -> ReportTable:
    """Show the verdict of every audit and its reason."""
    headings = (
        Heading("Model"),
        Heading("Verdict"),
        Heading("Cause", "long"),
        Heading("At most robust", "number"),
        Heading("Clean", "number"),
        Heading("Why", "long"),
    )
    rows = []
    audits = list(audits)
    for one in audits:
        bound, clean = one.robust_accuracy, one.clean_accuracy
        said = [one.of_claim, one.reason] if one.claim else [one.reason]
        rows.append(
            (
                words(one.checkpoint),
                Cell(one.verdict, tone=AUDIT_TONES[one.verdict]),
                words(", ".join(one.causes)),
                share(bound.upper_bound, bound.ci_low, bound.ci_high, f"n = {bound.n:,}"),
                share(clean.value, clean.ci_low, clean.ci_high),
                words(". ".join(f"{piece[:1].upper()}{piece[1:]}" for piece in said)),
            )
        )
    noted = f". {NO_PROOF[:1].upper()}{NO_PROOF[1:]}" if any(one.verdict == NONE_FOUND for one in audits) else ""
    balls = " and ".join(dict.fromkeys(f"{one.ball}, budget {one.budget}" for one in audits))
    caption = f"The verdicts of the audits ({balls}); rates with 95 % Wilson intervals{noted}"
    return ReportTable("verdicts", caption, headings, tuple(rows))


_OUTCOMES = {"accuses": "accuses", "fired": "fired", "passed": "passed", "abstained": "abstained"}
_CHECKS = (
    "Checks of the audit. A check that accuses compares outcomes and is enough for the verdict alone. A check that "
    "fired without accusing names a reason, or what the attack lacked"
)


def judge_table(rows: pd.DataFrame) -> ReportTable:
    """Show rows of the table JUDGE: the attack on trial, our attacks, its repairs, and all together."""
    headings = (
        Heading("Model"),
        Heading("Role"),
        Heading("Part"),
        Heading("Name", "long"),
        Heading("Left", "number"),
        Heading("Less than the attack", "number", "points"),
        Heading("p", "number", "adjusted"),
        Heading("Named"),
    )
    body = tuple(
        (
            words(row["checkpoint"]),
            words(row["role"]),
            words(row["part"]),
            words(row["name"]),
            share(row["left"], row["ci_low"], row["ci_high"]),
            share(row["gain"], row["gain_low"], row["gain_high"]),
            number(row["p_value"]),
            words("named" if row["named"] else ""),
        )
        for row in rows.to_dict("records")
    )
    return ReportTable("judge", _TRIAL, headings, body)


_TRIAL = (
    "The attack on trial, our attacks on the same images, and the attack with one part repaired at a time. Intervals: "
    "Wilson, and Tango for paired differences. p: McNemar, one-sided, adjusted over our attacks or the repairs (Holm)"
)


def spectrum_table(rows: pd.DataFrame) -> ReportTable:
    """Show rows of the table SPECTRUM."""
    headings = (
        Heading("Model"),
        Heading("Matrix"),
        Heading("Layer"),
        Heading("Metric"),
        Heading("Value", "number"),
        Heading("Unit"),
        Heading("n", "number", "random vectors, or images in input space"),
    )
    body = tuple(
        (
            words(row["checkpoint"]),
            words(f"{row['matrix']}, {row['space']}"),
            words("" if pd.isna(row["layer"]) else row["layer"]),
            words(row["metric"]),
            number(row["value"], "", row["ci_low"], row["ci_high"]),
            words("" if row["unit"] == "-" else row["unit"]),
            count(row["n"]),
        )
        for row in rows.to_dict("records")
    )
    caption = "Curvature of the loss in numbers, with 95 % intervals over random vectors, or over images in input space"
    return ReportTable("spectrum", caption, headings, body)


def numbers_table(summary: pd.DataFrame, name: str, caption: str) -> ReportTable:
    """Show rows of the table SUMMARY."""
    headings = (
        Heading("Model"),
        Heading("Attack"),
        Heading("Metric"),
        Heading("Of"),
        Heading("Value", "number"),
        Heading("Unit"),
        Heading("n", "number", "images"),
    )
    rows = tuple(
        (
            words(row["checkpoint"]),
            words(row["attack"]),
            words(row["metric"]),
            words(str(row["subset"]).replace("/", ", ")),
            number(row["value"], "", row["ci_low"], row["ci_high"]),
            words("" if row["unit"] == "-" else row["unit"]),
            count(row["n"]),
        )
        for row in summary.to_dict("records")
    )
    return ReportTable(name, caption, headings, rows)
