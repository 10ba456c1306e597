"""Prepare the claims of a report as a forest plot: one line per claim, which opens into its tests."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gradscope.reporting.chart import Track, tracks
from gradscope.reporting.tables import NOTHING, VERDICT_TONES, Cell, Heading, ReportTable, effect, number, words

#: Data sets for which the paper reports numbers.
_OF_PAPER = ("cifar10", "cifar100", "imagenet100")


@dataclass(frozen=True)
class Claim:
    """A claim: its code and statement, the outcome of its tests, their effects, and a table of the tests."""

    code: str
    statement: str
    anchor: str
    tone: str
    outcome: str
    tracks: tuple[Track, ...]
    tests: ReportTable


@dataclass(frozen=True)
class Forest:
    """The claims on one data set and architecture."""

    title: str
    claims: tuple[Claim, ...]


def forests(claims: pd.DataFrame) -> Iterator[Forest]:
    """Yield the claims in rows of the table CLAIMS by data set and architecture; effects of one unit share one axis."""
    drawn = tracks(claims, VERDICT_TONES)
    groups = claims.fillna({"dataset": "", "arch": ""}).groupby(["dataset", "arch"], sort=False)
    for rank, ((dataset, arch), rows) in enumerate(groups):
        title = ", ".join(str(name) for name in (dataset, arch) if name) if len(groups) > 1 else ""
        of_paper = str(dataset) in _OF_PAPER
        found = [
            _claim(str(code), tests, drawn, f"-{rank + 1}" if rank else "", of_paper)
            for code, tests in rows.groupby("claim", sort=False)
        ]
        yield Forest(title, tuple(found))


def _claim(code: str, tests: pd.DataFrame, drawn: dict[int, Track], suffix: str, of_paper: bool) -> Claim:
    counts = {verdict: int((tests["verdict"] == verdict).sum()) for verdict in VERDICT_TONES}
    tested = counts["supported"] + counts["not supported"]
    if not tested:
        tone, outcome = "abstained", "not tested"
    else:
        tone = "passed" if counts["supported"] == tested else "fired" if counts["supported"] else "accuses"
        outcome = f"{counts['supported']} of {tested} tests hold"
        if counts["not tested"]:
            outcome += f", {counts['not tested']} not tested"
    return Claim(
        code,
        str(tests["statement"].iloc[0]),
        f"claim-{code}{suffix}",
        tone,
        outcome,
        tuple(drawn[at] for at in tests.index if at in drawn),
        _tests(code, tests, drawn, of_paper),
    )


def _tests(code: str, tests: pd.DataFrame, drawn: dict[int, Track], of_paper: bool) -> ReportTable:
    """Make the table of a claim's tests; empty columns are left out."""
    rows: list[dict[Any, Any]] = tests.to_dict("records")
    columns = {
        Heading("Test", "long"): [Cell(str(row["statistic"]), f"claimed: {row['direction']}") for row in rows],
        Heading("Effect", "number", "over images"): [
            replace(effect(row), track=drawn.get(at)) for at, row in zip(tests.index, rows, strict=True)
        ],
        Heading("Over seeds", "number"): [
            Cell(number(row["value"], "", row["seeds_low"], row["seeds_high"]).aside or NOTHING) for row in rows
        ],
        Heading("Verdict"): [
            Cell(str(row["verdict"]), tone=VERDICT_TONES.get(str(row["verdict"]), "abstained")) for row in rows
        ],
        Heading("p", "number", "adjusted"): [number(row["p_value"]) for row in rows],
        Heading("Paper", "long"): [words(row["paper"] if of_paper else None) for row in rows],
        Heading("Why", "long"): [words(row["why"]) for row in rows],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cell.text != NOTHING for cell in cells)}
    caption = (
        f"The tests of {code}. Effect: with its 95 % interval over images; the claim predicts the shaded side; "
        "effects of one unit share one axis"
    )
    return ReportTable(f"claims-{code}", caption, tuple(shown), tuple(zip(*shown.values(), strict=True)))
