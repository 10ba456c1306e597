"""Make the first screen of a report: the finding in one sentence, one chart, one table, and what to do next."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gradscope.reporting.chart import Chart, overview
from gradscope.reporting.contents import Contents, ReportPart
from gradscope.reporting.models import (
    EXACT,
    PAPER,
    Ball,
    ReportedModel,
    UnderAttack,
    main_ball,
    models,
    models_table,
)
from gradscope.reporting.sentences import claims_in_words, listed, opening
from gradscope.reporting.tables import AUDIT_TONES, CLAIM_TONES, ReportTable, whole_percent
from gradscope.results.audits import NONE_FOUND, AuditOf
from gradscope.results.schemas import JUDGE

_OF_ATTACK = {
    "the attack is blind": "accuses",
    "invalid examples": "accuses",
    "the attack is weaker": "fired",
    "the attack is sound": "passed",
    "inconclusive": "abstained",
}
#: Most steps of advice.
_MOST_STEPS = 4


@dataclass(frozen=True)
class Trial:
    """The verdict on one attack, tried on one model, in words."""

    attack: str
    tone: str
    verdict: str
    parts: tuple[str, ...]
    finding: str


@dataclass(frozen=True)
class Headline:
    """The first screen. ``tone`` colours the finding; ``below`` has further sentences; ``steps``: what to do next.

    ``untested``: one more step, whose codes are claims; the codes in ``steps`` are checks.
    """

    examined: str
    finding: str
    tone: str
    below: list[str]
    chart: Chart | None
    table: ReportTable | None
    trials: list[Trial]
    steps: list[str]
    untested: str


def headline(contents: Contents) -> Headline:
    """Make the first screen of the report of ``contents``."""
    found = models(contents)
    trials = list(_trials(contents.parts))
    finding, tone = _finding(contents, found, trials)
    table = models_table(found)
    return Headline(
        _examined(found),
        finding,
        tone,
        list(_below(contents, found, finding)),
        overview(found),
        table if len(table.headings) > 1 else None,
        trials,
        list(dict.fromkeys(_steps(contents, found)))[:_MOST_STEPS],
        _untested(contents),
    )


def _examined(found: Sequence[ReportedModel]) -> str:
    """Say in a few words how many models were measured, on which data and in which ball."""
    if not found:
        return ""
    count = "1 model" if len(found) == 1 else f"{len(found)} models"
    kinds = (sorted({model.dataset for model in found}), sorted({model.arch for model in found}))
    pieces = [count, *(listed(names, most=3) for names in kinds)]
    if ball := main_ball(found):
        pieces.append(str(ball))
    return " \N{MIDDLE DOT} ".join(pieces)


def _finding(contents: Contents, found: Sequence[ReportedModel], trials: Sequence[Trial]) -> tuple[str, str]:
    """Write the most important sentence and its tone: the first kind of finding that has results."""
    ball = main_ball(found)
    for finding in (
        _of_trials(found, trials),
        _of_claimed(found),
        _of_arithmetic(found, ball),
        _of_audits(found, ball),
        _of_bounds(found, ball),
    ):
        if finding:
            return finding
    for part in contents.parts:
        if sentence := opening(part):
            return sentence, ""
    if contents.claims is not None and len(contents.claims):
        return claims_in_words(contents.claims), ""
    return f"Results of {listed([model.label for model in found])}.", ""


def _of_trials(found: Sequence[ReportedModel], trials: Sequence[Trial]) -> tuple[str, str] | None:
    """Write the worst verdict on a judged attack."""
    if not trials:
        return None
    order = list(_OF_ATTACK)
    trial = min(trials, key=lambda one: order.index(one.verdict) if one.verdict in order else len(order))
    model = next((one for one in found if trial.attack.endswith(f" on {one.label}")), None)
    on_trial = model.on_trial() if model else None
    named = f"{trial.attack}: {trial.verdict}"
    if model is None or on_trial is None:
        return f"{named}.", trial.tone
    lowest = model.lowest(on_trial.ball)
    left = f"it leaves {whole_percent(on_trial.rate.value)} of the images right"
    ours = f", gradscope's attacks leave {whole_percent(lowest.rate.value)}" if lowest else ""
    part = f"; blinded by its {listed(trial.parts)}" if trial.parts else ""
    return f"{named}: {left}{ours}{part}.", trial.tone


def _of_claimed(found: Sequence[ReportedModel]) -> tuple[str, str] | None:
    """Say whether a claimed robust accuracy is refuted: the first refuted claim, else the first claim."""
    claimed = [(model.label, audit, audit.claim) for model in found for audit in model.audits if audit.claim]
    for label, audit, claim in sorted(claimed, key=lambda one: not one[1].refuted)[:1]:
        bound = audit.robust_accuracy
        verdict = "cannot be decided" if claim.verdict == "inconclusive" else f"is {claim.verdict}"
        return (
            f"The claim that {label} keeps {whole_percent(claim.value)} {verdict}: at most "
            f"{whole_percent(bound.upper_bound)} of {bound.n:,} images stay right under the audit's attacks.",
            CLAIM_TONES[claim.verdict],
        )
    return None


def _of_arithmetic(found: Sequence[ReportedModel], ball: Ball | None) -> tuple[str, str] | None:
    """Write the largest difference between the paper's attack and the exact one with disjoint intervals."""
    gaps = [
        (paper.rate.value - exact.rate.value, model.label, paper, exact)
        for model in found
        for paper, exact in _pairs(model, ball)
        if paper.rate.low > exact.rate.high
    ]
    if not gaps:
        return None
    _, label, paper, exact = max(gaps, key=lambda gap: gap[0])
    return (
        f"Under the paper's attack {label} keeps {whole_percent(paper.rate.value)}, under an exact one "
        f"{whole_percent(exact.rate.value)}: the difference is the attack's arithmetic, not robustness.",
        "accuses",
    )


def _pairs(model: ReportedModel, ball: Ball | None) -> Iterator[tuple[UnderAttack, UnderAttack]]:
    """Yield the paper's attack and the exact one in ``ball`` from the same part."""
    for paper in model.under:
        if paper.attack == PAPER and paper.ball == ball and not paper.on_trial:
            for exact in model.under:
                if (exact.attack, exact.ball, exact.part) == (EXACT, ball, paper.part):
                    yield paper, exact


def _of_audits(found: Sequence[ReportedModel], ball: Ball | None) -> tuple[str, str] | None:
    """Name the models that mask their gradients; else say that no audit found masking, or which is inconclusive."""
    audited = [(model, audit) for model in found for audit in model.audits]
    if not audited:
        return None
    for verdict, says in (
        ("masking found", "masks its gradients"),
        ("set-up invalid", "has an invalid set-up"),
    ):
        named = [(model, audit) for model, audit in audited if audit.verdict == verdict]
        if named:
            model, audit = named[0]
            bound = f"at most {whole_percent(audit.robust_accuracy.upper_bound)} of its images are robust"
            if verdict == "set-up invalid":
                bound = "its accuracies under attack bound nothing"
            best = max(audit.under.items(), key=lambda item: item[1], default=None)
            seen = ""
            if verdict == "masking found" and best and best[1] > audit.robust_accuracy.ci_high:
                seen = f", although {best[0]} leaves {whole_percent(best[1])}"
            cause = f" ({listed(audit.causes)})" if audit.causes else ""
            others = [other.label for other, _ in named[1:]]
            more = f" The same holds for {listed(others, most=3)}." if others else ""
            return f"{model.label} {says}{cause}: {bound}{seen}.{more}", AUDIT_TONES[verdict]
    best_of = _of_bounds(found, ball)
    said = best_of[0] if best_of else ""
    if all(audit.verdict == NONE_FOUND for _, audit in audited):
        return f"No gradient masking found within this budget. {said}".strip(), "passed"
    open_ones = listed([model.label for model, audit in audited if audit.verdict == "inconclusive"], most=3)
    return f"The audit of {open_ones} is inconclusive. {said}".strip(), "abstained"


def _of_bounds(found: Sequence[ReportedModel], ball: Ball | None) -> tuple[str, str] | None:
    """Compare the most and the least robust model by their lowest bounds.

    A model with scaled logits is exactly as robust as its original, so only originals are compared if there are any.
    """
    if ball is None:
        return None
    originals = [model for model in found if model.factor == 1.0] or found
    bounds = [(lowest, model.label) for model in originals if (lowest := model.lowest(ball))]
    if not bounds:
        return None
    best = max(bounds, key=lambda pair: pair[0].rate.value)
    worst = min(bounds, key=lambda pair: pair[0].rate.value)
    if len(bounds) == 1:
        return f"At most {best[0].rate.words} of the images of {best[1]} are robust ({best[0].attack}).", ""
    if best[0].rate.cell.text == worst[0].rate.cell.text:
        return f"At most {best[0].rate.words} of the images of any model stay right.", ""
    if best[0].rate.low <= worst[0].rate.high:
        return f"No model is clearly more robust: at most {worst[0].rate.cell.text} ({worst[1]}) to " + (
            f"{best[0].rate.cell.text} ({best[1]}) of the images stay right."
        ), ""
    return (
        f"{best[1]} is the most robust: at most {best[0].rate.words} of its images stay right, "
        f"{worst[0].rate.words} of those of {worst[1]}."
    ), ""


def _below(contents: Contents, found: Sequence[ReportedModel], finding: str) -> Iterator[str]:
    """Yield a sentence each on the models, the audits and the paper's claims unless the finding says it already."""
    bounds = _of_bounds(found, main_ball(found))
    if bounds and len(found) > 1 and bounds[0] not in finding:
        yield bounds[0]
    audits = [audit for model in found for audit in model.audits]
    if audits:
        if "audit" not in finding and "mask" not in finding:
            yield _of_verdicts(audits)
    elif found and any(part.manifest.kind not in ("judge", "landscape", "spectrum") for part in contents.parts):
        yield "No audit is among these results, so they do not say whether gradients are masked."
    if contents.claims is not None and len(contents.claims):
        sentence = claims_in_words(contents.claims)
        if sentence != finding:
            yield sentence


def _of_verdicts(audits: Sequence[AuditOf]) -> str:
    """Count the models with masking, with an inconclusive audit and with an invalid set-up."""
    counts = Counter(audit.verdict for audit in audits)
    masked, total = counts["masking found"], len(audits)
    found = f"The audits find gradient masking in {masked} of" if masked else "No audit finds exact attacks blind:"
    others = [f"{counts[verdict]} {verdict}" for verdict in ("inconclusive", "set-up invalid") if counts[verdict]]
    return f"{found} {total} model{'s' if total > 1 else ''}{''.join(f', {other}' for other in others)}."


def _steps(contents: Contents, found: Sequence[ReportedModel]) -> Iterator[str]:
    """Yield what to do next: the steps of fired checks, and what would decide open questions."""
    for model in found:
        for audit in model.audits:
            yield from _steps_of(audit, model.label)
    if found and not any(model.audits for model in found) and any(model.under for model in found):
        yield "Audit the models (gradscope audit) before you call any of them robust."
    if any(audit.verdict == NONE_FOUND and audit.budget != "full" for model in found for audit in model.audits):
        larger = "standard or full" if any(a.budget == "quick" for m in found for a in m.audits) else "full"
        yield f"Audit again with --budget {larger} before you claim robustness: a larger budget may fool more."
    if contents.claims is not None and len(contents.claims) and contents.claims["seeds"].max() < 3:
        yield "Train at least three seeds: the claims here are tested on these models alone."


def _untested(contents: Contents) -> str:
    """Name the claims that lack measurements; "" if none does."""
    claims = contents.claims
    lacking = [] if claims is None else claims[claims["verdict"] == "not tested"]["claim"].astype(str).unique().tolist()
    return f"Measure what the untested tests of {listed(lacking)} lack; each says what." if lacking else ""


def _steps_of(audit: AuditOf, label: str) -> Iterator[str]:
    accusing = [check for check in audit.checks if check.state == "fired" and check.accuses]
    weak = [check for check in audit.checks if check.state == "fired" and check.id in ("C1", "C2", "T1")]
    if audit.verdict == "inconclusive":
        for check in weak[:1] or accusing[:1]:
            yield f"{label}: {check.next_step} ({check.id} {check.name})."
    elif audit.verdict in ("masking found", "set-up invalid"):
        for check in accusing[:1] or [check for check in audit.checks if check.state == "fired"][:1]:
            yield f"{label}: {check.next_step} ({check.id} {check.name})."


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
                tuple(str(name) for name in named),
                str(row["finding"]),
            )
