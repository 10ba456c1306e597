"""Write the sentence that begins each section of a report: its main result, from the rows of its tables."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from gradscope.reporting.contents import ReportPart
from gradscope.reporting.tables import is_missing, whole_percent
from gradscope.results.schemas import ATTACKS, CURVE, JUDGE, SCALE, SPECTRUM, SUMMARY, TRANSFER

Say = Callable[[float], str]


def listed(names: Sequence[str], most: int = 6) -> str:
    """List names in a sentence: "a, b and c"; beyond ``most`` names, count the rest."""
    shown = list(dict.fromkeys(names))
    if len(shown) > most:
        shown = [*shown[:most], f"{len(shown) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def spread(values: Mapping[str, float], say: Say) -> str:
    """Summarise the values of models: both of two, else the lowest and the highest, with the models' names."""
    known = {name: value for name, value in values.items() if not is_missing(value)}
    if not known:
        return ""
    low, high = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    if len(known) == 1 or say(known[low]) == say(known[high]):
        return f"{say(known[low])}{' for every model' if len(known) > 1 else ''}"
    return f"{say(known[low])} ({low}) {'and' if len(known) == 2 else 'to'} {say(known[high])} ({high})"


def digits(value: float) -> str:
    """Write a number with two significant digits, or a whole number from 100 on."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"


def opening(part: ReportPart) -> str:
    """Write the sentence for the first kind of results that the part has; "" if it has none."""
    for say in (trajectories, landscapes, spectrum, attacks, transfer, audit):
        if sentence := say(part):
            return sentence
    return ""


def trajectories(part: ReportPart) -> str:
    """Describe accuracy under each attack, stability of the gradients' direction, and their norm at clean images."""
    rows = part.table(SUMMARY)
    worst = _values(rows, "accuracy", "worst/all")
    if not worst:
        return ""
    ends = [f"under {attack} {spread(values, whole_percent)}" for attack, values in worst.items()]
    said = [f"Accuracy {'; '.join(ends)}."]
    attack = next(iter(worst))
    cosines = _values(rows, "cosine", "path/all").get(attack, {})
    if cosines:
        said.append(f"Along {attack} the mean cosine of consecutive gradients is {spread(cosines, _three)}.")
    if part.clean_norms:
        said.append(f"At the clean images the median gradient norm is {spread(part.clean_norms, digits)}.")
    return " ".join(said)


def entropy(part: ReportPart) -> str:
    """Describe predictive entropy at clean images and at the end of each attack."""
    rows = part.table(SUMMARY)
    clean = _values(rows, "entropy", "clean/all")
    if not clean:
        return ""
    said = (
        f"The mean entropy of the prediction is {spread(next(iter(clean.values())), digits)} bits at the clean images"
    )
    ends = [
        f"{spread(values, digits)} after {attack}" for attack, values in _values(rows, "entropy", "final/all").items()
    ]
    return f"{said}{', '.join(['', *ends])}."


def scale(part: ReportPart) -> str:
    """Describe how the scale of the logits changes accuracy under a fixed attack: the largest change of any model."""
    rows = part.table(SCALE)
    rows = rows[rows["metric"] == "robust-accuracy"]
    reaches = []
    for (checkpoint, attack), line in rows.groupby(["checkpoint", "attack"], sort=False):
        given = line[line["temperature"] == 1.0]
        if len(given) and len(line) > 1:
            top = line.sort_values("value", kind="stable").iloc[-1]
            reaches.append((float(top["value"] - given["value"].iloc[0]), str(checkpoint), str(attack), given, top))
    if not reaches:
        return ""
    gain, checkpoint, attack, given, top = max(reaches, key=lambda reach: reach[0])
    if gain <= 0:
        return "No attack here gets weaker when the logits are divided by another temperature."
    before = whole_percent(float(given["value"].iloc[0]))
    return (
        f"Dividing the logits of {checkpoint} by {top['temperature']:.3g} changes no prediction, yet {attack} then "
        f"leaves {whole_percent(float(top['value']))} of the images right instead of {before}."
    )


def distances(part: ReportPart) -> str:
    """Describe the median distance to the nearest adversarial image."""
    said = []
    for norm, curves in part.table(CURVE).groupby("norm", sort=False):
        medians = {}
        for checkpoint, line in curves.groupby("checkpoint", sort=False):
            below = line[line["value"] <= 0.5]["epsilon"]
            medians[str(checkpoint)] = float(below.iloc[0]) if len(below) else float("nan")
        if words := spread(medians, _three):
            said.append(f"Half of the images are fooled within a distance ({norm}) of {words}.")
    return " ".join(said)


def scale_and_distance(part: ReportPart) -> str:
    """Describe scale and median distance."""
    return " ".join(said for said in (scale(part), distances(part)) if said)


def landscapes(part: ReportPart) -> str:
    """Describe how far the prediction stays right, and how much the loss rises."""
    rows = part.table(SUMMARY)
    said = []
    along, random, rise = (
        spread(_merged(_values(rows, metric, "around/all")), digits)
        for metric in ("radius-adversarial", "radius-random", "sharpness")
    )
    if along:
        at_random = f", along random directions after {random}" if random else ""
        said.append(f"Along the attack's direction the prediction turns wrong after {along} epsilon{at_random}.")
    if rise:
        said.append(f"Within epsilon the loss rises by {rise} nats.")
    if said:
        return " ".join(said)
    landscape = part.composed.landscape
    if landscape is None:
        return ""
    weights = bool((landscape["space"] == "weights").any())
    where = "around the weights" if weights else "around test images"
    return f"The loss of {listed([str(name) for name in landscape['checkpoint'].unique()])} {where}."


def spectrum(part: ReportPart) -> str:
    """Describe the largest eigenvalue of each matrix."""
    rows = part.table(SPECTRUM)
    said = []
    for (space, matrix), found in rows[rows["metric"] == "eigenvalue"].groupby(["space", "matrix"], sort=False):
        whole = found[found["layer"].isna() | (found["layer"].astype(str) == "")]
        values = {str(row["checkpoint"]): float(row["value"]) for row in whole.to_dict("records")}
        if values:
            where = "weights" if space == "weights" else "image"
            said.append(f"The largest eigenvalue of the {matrix} in the {where} is {spread(values, digits)}.")
    return " ".join(said)


def attacks(part: ReportPart) -> str:
    """Describe the accuracy under all attacks together."""
    rows = part.table(ATTACKS)
    said = []
    for (norm, epsilon), of_ball in rows[rows["metric"] == "robust-accuracy"].groupby(["norm", "epsilon"], sort=False):
        last = of_ball.groupby("checkpoint", sort=False).last()["value"]
        left = {str(name): float(value) for name, value in last.items()}
        count = of_ball["attack"].nunique()
        names = "one attack" if count == 1 else f"{count} attacks together"
        said.append(f"{names} leave{'s' if count == 1 else ''} {spread(left, whole_percent)} in {norm} {epsilon:.4g}")
    return _sentence("; ".join(said)) if said else ""


def transfer(part: ReportPart) -> str:
    """Name the examples that transfer best, and models that other models' examples fool more than their own."""
    rows = part.table(TRANSFER)
    table = {(str(row["source"]), str(row["checkpoint"])): float(row["accuracy"]) for row in rows.to_dict("records")}
    own = {target: value for (source, target), value in table.items() if source == target}
    others = [(value, source, target) for (source, target), value in table.items() if source and source != target]
    if not own or not others:
        return ""
    value, source, target = min(others)
    said = (
        f"The examples that transfer best are those of {source} on {target}: they leave {whole_percent(value)} right; "
        f"its own leave {whole_percent(own.get(target, float('nan')))}."
        if target in own
        else ""
    )
    fooled = [name for name in own if any(worth < own[name] for worth, _, on in others if on == name)]
    if fooled:
        return (
            f"{said} Other models' examples do more harm than its own to {listed(fooled)}: a sign of masking.".strip()
        )
    return f"{said} Every model is fooled most by its own examples.".strip()


def audit(part: ReportPart) -> str:
    """Describe the verdicts, and which checks fired."""
    if not part.audits:
        return ""
    said = []
    for verdict in dict.fromkeys(entry.verdict for entry in part.audits):
        alike = [entry for entry in part.audits if entry.verdict == verdict]
        names = [entry.checkpoint for entry in alike]
        causes = list(dict.fromkeys(cause for entry in alike for cause in entry.causes))
        said.append(f"{listed(names)}: {verdict}{f' ({listed(causes)})' if causes else ''}.")
    fired = [check.id for entry in part.audits for check in entry.checks if check.state == "fired"]
    counts = {code: fired.count(code) for code in dict.fromkeys(fired)}
    total = len(part.audits)
    if counts:
        each = [f"{code} on {count} of {total}" if total > 1 else code for code, count in counts.items()]
        said.append(f"Checks that fired: {', '.join(each)}.")
    else:
        said.append("No check fired.")
    return " ".join(said)


def judge(part: ReportPart) -> str:
    """Describe the verdict on each judged attack."""
    rows = part.table(JUDGE)
    tried = rows[rows["role"] == "attack"]
    said = [f"{row['attack']} on {row['checkpoint']}: {row['verdict']}." for row in tried.to_dict("records")]
    return " ".join(said)


def claims_in_words(claims: pd.DataFrame) -> str:
    """Count the tests of the claims that hold."""
    said = [main] if (main := _main_claim(claims)) else []
    for codes, whose in (("C", "the paper's claims (C)"), ("H", "the rival explanation, the attack's arithmetic (H),")):
        tests = claims[claims["claim"].astype(str).str.startswith(codes)]
        tested = int((tests["verdict"] != "not tested").sum())
        if tested:
            held = int((tests["verdict"] == "supported").sum())
            said.append(f"{held} of {tested} tests of {whose} hold")
    return _sentence("; ".join(said)) if said else "No claim was tested: measurements are missing."


def _main_claim(claims: pd.DataFrame) -> str:
    """Say whether C1, that RL resists attacks better, holds under the paper's attack and under the exact one."""
    tests = claims[(claims["claim"] == "C1") & (claims["verdict"] != "not tested")]
    verdicts = {
        attack: set(tests[tests["statistic"].astype(str).str.contains(f"({attack})", regex=False)]["verdict"])
        for attack in ("pgd-paper", "pgd")
    }
    if any(len(found) != 1 for found in verdicts.values()):
        return ""
    paper, exact = ("holds" if found == {"supported"} else "fails" for found in verdicts.values())
    joint = "and" if paper == exact else "but"
    return f"the paper's main claim (C1) {paper} under its own attack, {joint} {exact} under the exact one"


def _values(summary: pd.DataFrame, metric: str, subset: str) -> dict[str, dict[str, float]]:
    """Look up a metric over a subset, by attack and checkpoint."""
    found: dict[str, dict[str, float]] = {}
    for row in summary[(summary["metric"] == metric) & (summary["subset"] == subset)].to_dict("records"):
        found.setdefault(str(row["attack"]), {})[str(row["checkpoint"])] = float(row["value"])
    return found


def _merged(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: value for of_attack in values.values() for name, value in of_attack.items()}


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 0.9995 or value > 1 else "1"


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."
