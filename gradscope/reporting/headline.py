"""What a report says first: what was examined, the verdicts, and the lowest accuracies that were reached."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gradscope.reporting.contents import Contents, ReportPart
from gradscope.reporting.models import ReportedModel, models
from gradscope.reporting.tables import Cell, share
from gradscope.results.audits import NO_PROOF, NONE_FOUND, AuditOf
from gradscope.results.schemas import JUDGE

_MOST_NAMES = 8
_TONES = {"masking found": "accuses", "set-up invalid": "fired", NONE_FOUND: "passed", "inconclusive": "abstained"}
_OF_CLAIM = {"refuted": "accuses", "not refuted within this budget": "passed", "inconclusive": "abstained"}
_OF_ATTACK = {
    "the attack is blind": "accuses",
    "invalid examples": "accuses",
    "the attack is weaker": "fired",
    "the attack is sound": "passed",
    "inconclusive": "abstained",
}
#: What stands alone on the page needs its subject.
_WORDS = {NONE_FOUND: f"no masking found{NONE_FOUND.removeprefix('none found')}"}


@dataclass(frozen=True)
class Verdict:
    """The verdict on one checkpoint, in words."""

    checkpoint: str
    claim: str
    claim_tone: str
    tone: str
    verdict: str
    causes: str
    bound: Cell
    clean: Cell
    ball: str
    reason: str
    proof: str


@dataclass(frozen=True)
class Trial:
    """The verdict on one attack, tried on one model, in words."""

    attack: str
    tone: str
    verdict: str
    parts: str
    ball: str
    finding: str


@dataclass(frozen=True)
class Headline:
    """The first lines of the page. ``notes`` are sentences."""

    examined: str
    verdicts: list[Verdict]
    trials: list[Trial]
    notes: list[str]


def headline(contents: Contents) -> Headline:
    """What stands on top of the report of ``contents``."""
    found = models(contents)
    verdicts = [_verdict(one, found) for _, one in contents.audits]
    notes = [*_claims(contents), *_arithmetic(found)]
    if not verdicts and found:
        notes += _lowest(found)
        if any(part.manifest.kind != "judge" for part in contents.parts):
            notes.append("No audit is among these results: they do not say whether gradients are masked.")
    return Headline(_examined(found), verdicts, list(_trials(contents.parts)), notes)


def _examined(found: Sequence[ReportedModel]) -> str:
    if not found:
        return "No model was examined here."
    labels = [model.label for model in found]
    shown = ", ".join(labels[:_MOST_NAMES]) + (f" and {len(labels) - _MOST_NAMES} more" if len(labels) > 8 else "")
    data = " and ".join(dict.fromkeys(model.dataset for model in found))
    archs = " and ".join(dict.fromkeys(model.arch for model in found))
    sizes = sorted({int(row["n"]) for model in found for row in (model.clean, *model.under.values()) if row})
    counted = ""
    if sizes:
        counted = f", {sizes[0]:,} to {sizes[-1]:,} test images" if len(sizes) > 1 else f", {sizes[0]:,} test images"
    under = "; ".join(dict.fromkeys(name for model in found for name in model.under))
    count = "1 model" if len(found) == 1 else f"{len(found)} models"
    return f"{count} ({shown}; {archs}) on {data}{counted}" + (f". Accuracy under: {under}." if under else ".")


def _verdict(one: AuditOf, found: Sequence[ReportedModel]) -> Verdict:
    bound, clean = one.robust_accuracy, one.clean_accuracy
    reason = f"{one.reason[:1].upper()}{one.reason[1:]}".removesuffix(".")
    return Verdict(
        one.checkpoint,
        one.of_claim,
        _OF_CLAIM[one.claim.verdict] if one.claim else "",
        _TONES[one.verdict],
        _WORDS.get(one.verdict, one.verdict),
        " or ".join(one.causes),
        share(bound.upper_bound, bound.ci_low, bound.ci_high, f"n = {bound.n:,}"),
        share(clean.value, clean.ci_low, clean.ci_high),
        f"{one.ball}, budget {one.budget}",
        ". ".join([reason, *_lower(one, found)]),
        f"{NO_PROOF[:1].upper()}{NO_PROOF[1:]}." if one.verdict == NONE_FOUND else "",
    )


def _lower(one: AuditOf, found: Sequence[ReportedModel]) -> Iterator[str]:
    """What other attacks in the same ball have left, where that is less than the audit; of however many images.

    The paper's attack leaves the box, so that it is not in the same ball.
    """
    ball = f"{one.threat.norm} {one.threat.epsilon:.4g}"
    for model in found:
        under = {name: row for name, row in model.under.items() if not name.startswith("pgd-paper") and row.get("n")}
        left = [(name, row) for name, row in under.items() if name.endswith(f", {ball}")]
        if model.label == one.checkpoint and left:
            name, row = min(left, key=lambda item: float(item[1]["value"]))
            if row["value"] < one.robust_accuracy.upper_bound:
                lowest = _words(share(row["value"], row["ci_low"], row["ci_high"]))
                yield f"Elsewhere here {lowest} of {int(row['n']):,} images stand under {name}"


def _claims(contents: Contents) -> list[str]:
    if contents.claims is None or contents.claims.empty:
        return []
    of_paper = contents.claims["claim"].str.startswith("C")
    notes = []
    for tests, whose in (
        (contents.claims[of_paper], "the paper's {} claims"),
        (contents.claims[~of_paper], "the {} statements that the attack's arithmetic explains them"),
    ):
        if len(tests):
            counted = tests["verdict"].value_counts(sort=False)
            said = ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
            notes.append(f"Of {len(tests)} tests of {whose.format(tests['claim'].nunique())}: {said}.")
    return notes


def _trials(parts: Iterable[ReportPart]) -> Iterator[Trial]:
    for part in parts:
        rows = part.table(JUDGE)
        entries = {entry.get("label"): entry for entry in part.raw_manifest.get("checkpoints", ())}
        for row in rows[rows["role"] == "attack"].to_dict("records"):
            named = entries.get(row["checkpoint"], {}).get("judgement", {}).get("parts", ())
            yield Trial(
                f"{row['attack']} on {row['checkpoint']}",
                _OF_ATTACK.get(str(row["verdict"]), "abstained"),
                str(row["verdict"]),
                ", ".join(named),
                f"{row['norm']} {row['epsilon']:.4g}, budget {row['budget']}",
                str(row["finding"]),
            )


def _arithmetic(found: Sequence[ReportedModel]) -> list[str]:
    """Where the paper's attack leaves clearly more standing than the exact one."""
    notes = []
    for model in found:
        for name, paper in model.under.items():
            exact = model.under.get(name.replace("pgd-paper", "pgd", 1))
            if name.startswith("pgd-paper") and exact and paper["ci_low"] > exact["ci_high"]:
                notes.append(
                    f"{model.label}: {_words(share(paper['value'], paper['ci_low'], paper['ci_high']))} are right "
                    f"under {name}, {_words(share(exact['value'], exact['ci_low'], exact['ci_high']))} under the exact "
                    "attack. The difference is the attack's arithmetic, not robustness."
                )
    return notes


def _lowest(found: Sequence[ReportedModel]) -> list[str]:
    notes = []
    for model in found:
        if model.under:
            name, row = min(model.under.items(), key=lambda item: float(item[1]["value"]))
            clean = f"{_words(share(model.clean['value']))} when clean, " if model.clean else ""
            lowest = _words(share(row["value"], row["ci_low"], row["ci_high"]))
            notes.append(f"{model.label}: {clean}{lowest} under {name}, an upper bound.")
    return notes


def _words(cell: Cell) -> str:
    return f"{cell.text} {cell.aside}".strip()
