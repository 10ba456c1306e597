"""Write a directory of results as lines of text for the terminal, from its CSV and JSON files."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gradscope.reading import read_json
from gradscope.results.audits import NO_PROOF, NONE_FOUND, AuditOf, Audits
from gradscope.results.cautions import blind_attacks, cautions
from gradscope.results.manifest import MANIFEST, read_manifest
from gradscope.results.metrics import METRICS
from gradscope.results.schemas import (
    ATTACKS,
    AUDIT_JSON,
    CLAIMS,
    CURVE,
    EIGENVALUES,
    JUDGE,
    SIMILARITY,
    SPECTRUM,
    STEPS,
    SUMMARY,
    TRANSFER,
)
from gradscope.results.stats import wilson_interval
from gradscope.results.tables import find_table, read_table


def finding_lines(results: Path) -> str:
    """Write the findings of a measurement, with all cautions about its models."""
    manifest, _ = read_manifest(results / MANIFEST)
    return "\n".join(
        [_LINES[manifest.kind](results), *manifest.adapted, *(f"caution: {caution}" for caution in cautions(manifest))]
    )


def measured_lines(results: Path) -> str:
    """Write the findings and which attacks were blind; the command printed its other cautions before it began."""
    manifest, _ = read_manifest(results / MANIFEST)
    return "\n".join(
        [_LINES[manifest.kind](results), *manifest.adapted, *(f"caution: {blind}" for blind in blind_attacks(manifest))]
    )


def analysis_lines(results: Path) -> str:
    """Write accuracies and the last cosine of each checkpoint and attack, and one line per metric measured by name."""
    rows = read_table(results / SUMMARY.file, SUMMARY)
    steps = read_table(results / STEPS.file, STEPS)
    cosines = steps[steps["metric"] == "cosine"].groupby(["checkpoint", "attack"])["mean"].last().to_dict()
    lines = []
    for (checkpoint, attack), own in rows.groupby(["checkpoint", "attack"], sort=False):
        clean, worst = (_one(own, str(attack), "accuracy", f"{point}/all") for point in ("clean", "worst"))
        accuracy = f"clean {100 * clean['value']:5.1f} %  under attack {_share(worst)}"
        cosine = f"  cosine {cosines[checkpoint, attack]:.3f}" if (checkpoint, attack) in cosines else ""
        lines.append(f"{checkpoint:16} {attack:10} {accuracy}{cosine}")
        named = own["metric"].map(lambda metric: metric in METRICS and METRICS[metric].extra)
        for row in own[named & own["subset"].isin(("clean/all", "final/all"))].to_dict("records"):
            mean = f"{row['metric']:18} mean {row['value']:.3g} [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"
            lines.append(f"{checkpoint:16} {attack:10} {mean}  n = {row['n']}  {row['unit'].strip('-')}".rstrip())
    return "\n".join(lines)


def landscape_lines(results: Path) -> str:
    """Write one line per checkpoint and number of a landscape, with its interval, then what went wrong."""
    rows = read_table(results / SUMMARY.file, SUMMARY)
    rows = rows[rows["subset"].str.endswith("/all")]
    names = rows["subset"].str.removesuffix("/all") + " " + rows["metric"]
    width, lines = max([26, *names.str.len()]), []
    for name, row in zip(names, rows.to_dict("records"), strict=True):
        interval = "" if pd.isna(row["ci_low"]) else f" [{row['ci_low']:.4g}, {row['ci_high']:.4g}]"
        counted = f"  n = {row['n']}  {row['unit'].strip('-')}".rstrip()
        lines.append(f"{row['checkpoint']:16} {name:{width}} {row['value']:11.4g}{interval}{counted}")
    for entry in read_manifest(results / MANIFEST)[1]["checkpoints"]:
        for which, images in entry.get("random_instead_of_adversarial", {}).items():
            if images:
                count = "1 image" if len(images) == 1 else f"{len(images)} images"
                lines.append(f"{entry['label']}: the attack gave no {which} direction for {count}")
        if entry.get("keeps_batch_norm"):
            lines.append(
                f"{entry['label']}: batch norm's statistics stay its own, so the far end is not the other "
                "checkpoint; --batch-norm re-estimated measures them again"
            )
        if entry.get("custom_failed"):
            lines.append(
                f"{entry['label']}: --metric failed at {entry['custom_failed']} points, {entry['custom_failure']}"
            )
    return "\n".join(lines)


#: Most eigenvalues on a line, and the largest residual of a converged eigenvalue as a share of it.
_MOST_EIGENVALUES, _CONVERGED = 6, 0.01
_FLAT = "the matrix is 0, or rounding: perhaps float32 saturates the softmax, or the model rounds"


def spectrum_lines(results: Path) -> str:
    """Write the numbers, largest eigenvalues and traces by layer of each checkpoint, matrix and layer."""
    numbers, values = (
        read_table(results / table.file, table).fillna({"layer": ""}) for table in (SPECTRUM, EIGENVALUES)
    )
    lines: list[str] = []
    for (checkpoint, matrix, layer), own in values.groupby(["checkpoint", "matrix", "layer"], sort=False):
        of_matrix = numbers[(numbers["checkpoint"] == checkpoint) & (numbers["matrix"] == matrix)]
        at = {row["metric"]: row for row in of_matrix[of_matrix["layer"] == layer].to_dict("records")}
        by_image = bool(own["index"].notna().any())
        n = at["trace"]["n"]
        over = f"mean over {n} images" if by_image else f"{n} random vectors"
        where = f" of layer {layer}" if layer else ""
        lines.append(f"{checkpoint:16} {matrix}{where}, {over}")
        lines += [f"{'':16}   {text}" for text in _of_spectrum(at, own, by_image=by_image)]
        traces = of_matrix[(of_matrix["metric"] == "trace") & (of_matrix["layer"] != "")].to_dict("records")
        if traces and not layer:
            text = ", ".join(f"{row['layer']} {row['value']:.4g} ± {row['error']:.2g}" for row in traces)
            lines.append(f"{'':16}   trace by layer: {text}")
    for entry in read_manifest(results / MANIFEST)[1]["checkpoints"]:
        if frozen := entry.get("frozen_parameters"):
            lines.append(f"{entry['label']}: {frozen:,} of its parameters are frozen; they count like the others")
    return "\n".join(lines)


def _of_spectrum(at: Mapping[str, Mapping[Any, Any]], values: pd.DataFrame, *, by_image: bool) -> Iterator[str]:
    trace, negative = at["trace"], at["negative-mass"]
    yield f"trace {trace['value']:.4g} ± {trace['error']:.2g} [{trace['ci_low']:.4g}, {trace['ci_high']:.4g}]"
    if not pd.isna(negative["value"]):
        yield f"negative mass {_share(negative).rpartition('  n =')[0].strip()}"
    if by_image:
        largest = at["eigenvalue"]
        interval = f"[{largest['ci_low']:.4g}, {largest['ci_high']:.4g}]"
        yield f"size of the largest eigenvalue {largest['value']:.4g} {interval}"
        if at["flat"]["value"]:
            yield f"caution: flat on {_percent(at['flat']['value'])} of the images: {_FLAT}"
        return
    if (values["value"].abs() <= values["residual"]).all():
        yield f"caution: flat: {_FLAT}"
    shown = values.head(_MOST_EIGENVALUES)
    text = ", ".join(f"{row.value:.4g} ({row.residual:.1g})" for row in shown.itertuples())
    more = f", and {len(values) - len(shown)} more" if len(values) > len(shown) else ""
    yield f"eigenvalues of largest size, with residuals in parentheses: {text}{more}"
    close = int((values["residual"] <= _CONVERGED * values["value"].abs()).sum())
    if close < len(values):
        yield (
            f"caution: only {close} of {len(values)} eigenvalues have a residual below 1 %, so some may be missing; "
            "increase --iterations"
        )


def attack_lines(results: Path) -> str:
    """Write for each checkpoint and radius the clean accuracy, each attack, and the lowest robust accuracy.

    The last lines say which attacks were skipped and why, and whether saved images still fool the model.
    """
    rows = read_table(results / ATTACKS.file, ATTACKS)
    curves = None if (found := find_table(results / CURVE.file)) is None else read_table(found, CURVE)
    lines = []
    for (checkpoint, norm, epsilon), own in rows.groupby(["checkpoint", "norm", "epsilon"], sort=False):
        ball = f"{norm} {epsilon:.4g}"
        clean = _one(own, "none", "accuracy", "all")
        lines.append(f"{checkpoint:16} {ball:12} {'clean':16} {_share(clean)}")
        if undefined := _one(own, "none", "undefined", "all")["value"]:
            lines.append(f"{checkpoint:16} {ball:12} logits not finite on {_percent(undefined)}, which count as wrong")
        names = [name for name in own["attack"].unique() if name != "none"]
        for name in names:
            alone, so_far = _one(own, name, "accuracy", "attacked"), _one(own, name, "robust-accuracy", "all")
            left = f"{_percent(alone['value'])} of {int(alone['n'])} attacked stay right" if alone["n"] else "none left"
            lines.append(f"{checkpoint:16} {ball:12} {name:16} {left}, {_percent(so_far['value'])} of all so far")
        if names:
            lowest = _one(own, names[-1], "robust-accuracy", "all")
            whose = "" if curves is None else " of these attacks"
            lines.append(f"{checkpoint:16} {ball:12} lowest robust accuracy{whose}, an upper bound: {_share(lowest)}")
        else:
            lines.append(f"{checkpoint:16} {ball:12} no attack could run, so its robustness is unknown")
        if curves is not None:
            here = curves[(curves["checkpoint"] == checkpoint) & (curves["norm"] == norm)]
            reached = here[here["epsilon"] <= own["epsilon"].iloc[0]].tail(1).to_dict("records")
            for row in reached:
                text = f"{row['attack']:16} {_percent(row['value'])} of all stay right by the curve alone"
                lines.append(f"{checkpoint:16} {ball:12} {text}")
    lines += list(_distance_lines(results))
    for entry in read_manifest(results / MANIFEST)[1]["checkpoints"]:
        lines += [f"{entry['label']}: {name} was skipped, it {why}" for name, why in entry["skipped"].items()]
        if again := entry.get("rescored"):
            judged = f"{again['disagreeing']} of {again['images']} saved images"
            lines.append(f"{entry['label']}: {judged} do not fool it when loaded again, in batches of another size")
    return "\n".join(lines)


def _distance_lines(results: Path) -> Iterator[str]:
    """Write the median distance of each checkpoint if distances were measured."""
    if (found := find_table(results / CURVE.file)) is not None:
        for checkpoint, norm, said in median_distances(read_table(found, CURVE)):
            yield f"{checkpoint:16} {norm:12} {said}"


def median_distances(curves: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield checkpoint, norm and median distance in words from rows of the table CURVE."""
    for (checkpoint, norm), line in curves.groupby(["checkpoint", "norm"], sort=False):
        below = line[line["value"] <= 0.5]["epsilon"]
        median = f"{below.iloc[0]:.4g}" if len(below) else "none: no radius fools most of the images"
        left = line["value"].iloc[-1]
        kept = f", {_percent(left)} not fooled at any radius" if left else ""
        yield str(checkpoint), str(norm), f"median distance of all images (0 if wrong when clean): {median}{kept}"


def transfer_lines(results: Path) -> str:
    """Write the target's accuracy on the source's examples, with its interval: one line per source and target.

    One more line follows for every two models whose gradients were compared.
    """
    rows = read_table(results / TRANSFER.file, TRANSFER)
    lines = [
        f"{'clean images' if not row['source'] else 'from ' + row['source']:22} on {row['checkpoint']:16} {_share(row)}"
        + ("  white-box" if row["source"] == row["checkpoint"] else "")
        for row in rows.rename(columns={"accuracy": "value"}).to_dict("records")
    ]
    return "\n".join([*lines, *_similarities(results)])


def _similarities(results: Path) -> Iterator[str]:
    """Yield the mean cosine of every two models' gradients; results of older versions have none."""
    found = find_table(results / SIMILARITY.file)
    rows = [] if found is None else read_table(found, SIMILARITY).to_dict("records")
    seen: set[str] = set()
    for row in rows:
        seen.add(row["other"])
        if row["metric"] == "gradient-cosine" and row["checkpoint"] not in seen:
            interval = f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
            yield f"gradients of {row['other']} and {row['checkpoint']}: cosine {row['value']:.2f} {interval}"


def audit_lines(results: Path) -> str:
    """Write each checkpoint's verdict, accuracies, fired checks and abstained checks in ASCII, from ``audit.json``.

    The last line names attacks that the budget left out.
    """
    document = Audits.parse(read_json(results / AUDIT_JSON))
    return "\n\n".join("\n".join(_audit(one)) for one in document.audits)


def judge_lines(results: Path) -> str:
    """Write for each checkpoint the verdict on the attack, the finding, then repairs and our attacks by gain."""
    rows = read_table(results / JUDGE.file, JUDGE)
    entries = {entry["label"]: entry for entry in read_manifest(results / MANIFEST)[1]["checkpoints"]}
    found = rows.groupby("checkpoint", sort=False)
    return "\n\n".join("\n".join(_judgement(own, entries[str(name)])) for name, own in found)


def _judgement(rows: pd.DataFrame, entry: Mapping[str, Any]) -> Iterator[str]:
    by_role = {str(role): own.to_dict("records") for role, own in rows.groupby("role")}
    (attack,), (clean,), (lowest,) = by_role["attack"], by_role["clean"], by_role["all"]
    judgement = entry["judgement"]
    named = f": {', '.join(judgement['parts'])}" if judgement["parts"] else ""
    yield f"{attack['attack']} on {attack['checkpoint']}: {attack['verdict'].upper()}{named}"
    yield f"  {attack['finding']}"
    for words, row in (("clean accuracy", clean), ("under the attack", attack), ("under all", lowest)):
        yield f"  {words:24} {_share(row | {'value': row['left']}) if row['n'] else 'not run'}"
    yield f"  {'':24} {attack['norm']} {attack['epsilon']:.4g}, budget {attack['budget']}"
    for role, title in (("repair", "repaired"), ("ours", "ours")):
        tried = sorted(by_role.get(role, ()), key=lambda row: -(row["gain"] if row["gain"] == row["gain"] else -1))
        for row in tried:
            yield f"  {title:9} {row['part'] or '':14} {row['name']:44} {_compared(row)}"
    if known := read_of_attack(judgement["reading"]):
        yield f"  the attack as observed: {known}"


def _compared(row: Mapping[Any, Any]) -> str:
    if not row["n"]:
        return f"did not run: {row['finding']}"
    gain = f"{100 * row['gain']:+.1f} [{100 * row['gain_low']:.1f}, {100 * row['gain_high']:.1f}]"
    mark = "  NAMED" if row["named"] else ""
    return f"leaves {_percent(row['left']):7} {gain:22} p = {row['p_value']:.2g}{mark}"


def read_of_attack(reading: Mapping[str, Any]) -> str:
    """Say what is known of how an attack works, and what is unknown."""
    if not reading:
        return ""
    step = reading["step_size"]
    starts = {True: "a random point", False: "the image", None: None}
    known = {
        "loss": reading["loss"],
        "reduction": reading["reduction"],
        "step size": None if step is None else f"{step:.3g}",
        "start": starts[reading["random_start"]],
    }
    gradients = f"{reading['steps']} gradients"
    gradients = f"all {gradients} at one point" if reading.get("at_one_point") else gradients
    parts = [gradients, *(f"{name} {value}" for name, value in known.items() if value)]
    unknown = [name for name, value in known.items() if not value]
    return ", ".join(parts) + (f"; unknown: {', '.join(unknown)}" if unknown else "")


def claim_lines(claims: Path) -> str:
    """Count each claim's tests by verdict: one line per claim, for each data set and architecture."""
    rows = read_table(claims, CLAIMS)
    lines = []
    for (dataset, arch), group in rows.groupby(["dataset", "arch"], sort=False):
        lines.append(f"{dataset}, {arch}: number of tests supported, not supported, not tested")
        for (claim, statement), tests in group.groupby(["claim", "statement"], sort=False):
            counts = tests["verdict"].value_counts()
            supported, against, untested = (
                counts.get(verdict, 0) for verdict in ("supported", "not supported", "not tested")
            )
            lines.append(f"{claim:3} {supported:3} {against:3} {untested:3}  {statement}")
    return "\n".join(lines)


def _audit(audit: AuditOf) -> Iterator[str]:
    cause = f", cause: {audit.causes[0]}" if audit.causes else ""
    if audit.claim is not None:
        yield f"{audit.checkpoint}: {audit.of_claim}"
    yield f"{audit.checkpoint}: {audit.verdict.upper()}{cause}"
    yield f"  {audit.reason}"
    if audit.verdict == NONE_FOUND:
        yield f"  {NO_PROOF}"
    yield from _accuracies(audit)
    fired = [check for check in audit.checks if check.state == "fired"]
    for check in sorted(fired, key=lambda check: not check.accuses):
        value = f"{_number(check.value)} {check.sign} {_number(check.threshold)}"
        p_value = "" if check.p_value is None else f"p = {check.p_value:.2g}"
        weight = "accuses" if check.accuses else "does not accuse"
        yield f"  {check.id}  {check.name:16} {value:16} {p_value:12} {weight}"
        yield f"      {check.cause}"
        yield f"      next: {check.next_step}"
    for check in audit.checks:
        if check.state == "abstained":
            yield f"  {check.id}  {check.name:16} abstained: {check.cause}"
    if audit.left_out:
        reasons = dict.fromkeys(audit.left_out.values())
        left = [f"{', '.join(name for name, its in audit.left_out.items() if its == why)} ({why})" for why in reasons]
        yield f"  not run: {'; '.join(left)}"


def _accuracies(audit: AuditOf) -> Iterator[str]:
    """Yield the clean accuracy, the accuracy under PGD alone, and the lowest."""
    n = audit.robust_accuracy.n
    clean = {"n": n, **audit.clean_accuracy.model_dump()}
    lowest = {"value": audit.robust_accuracy.upper_bound, **audit.robust_accuracy.model_dump()}
    yield f"  {'clean accuracy':24} {_share(clean)}"
    if "pgd" in audit.under:
        low, high = wilson_interval(round(audit.under["pgd"] * n), n)
        alone = {"value": audit.under["pgd"], "ci_low": low, "ci_high": high, "n": n}
        yield f"  {'under PGD alone':24} {_share(alone)}"
    else:
        yield f"  {'under PGD alone':24} not run"
    yield f"  {'lowest robust accuracy':24} {_share(lowest)}  an upper bound, {audit.ball}, budget {audit.budget}"
    if audit.median_distance is not None:
        distance = f"{audit.median_distance:.4g} in {audit.threat.norm}"
        yield f"  {'median distance':24} {distance}, of all images (0 if wrong when clean)"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"


def _one(rows: pd.DataFrame, attack: str, metric: str, subset: str) -> dict[Hashable, Any]:
    found = rows[(rows["attack"] == attack) & (rows["metric"] == metric) & (rows["subset"] == subset)]
    return found.iloc[0].to_dict()


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share(row: Mapping[Any, Any]) -> str:
    interval = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    return f"{100 * row['value']:5.1f} % {interval}  n = {int(row['n'])}"


#: How to write each kind of measurement.
_LINES: Mapping[str, Callable[[Path], str]] = {
    "analysis": analysis_lines,
    "landscape": landscape_lines,
    "spectrum": spectrum_lines,
    "attack": attack_lines,
    "transfer": transfer_lines,
    "audit": audit_lines,
    "judge": judge_lines,
}
