"""Show how results were made, from their manifests: runs, data, checkpoints, versions."""

import json
from collections.abc import Mapping

from gradscope.figures.draw import describe_attack
from gradscope.reporting.contents import Contents, ReportPart
from gradscope.reporting.sections import Block
from gradscope.reporting.tables import Cell, Heading, ReportTable, count, number, words
from gradscope.results.manifest import Provenance, StudyManifest
from gradscope.results.schemas import ATTACKS


def making(contents: Contents) -> Block:
    """Return the manifests of a report as tables."""
    parts = [part for part in contents.parts if part.raw_manifest]
    stages = [_stages(contents.study)] if contents.study.stages else []
    if not parts:
        return Block(tables=stages)
    return Block(tables=[*stages, _runs(parts), _settings(parts), _data(parts), _checkpoints(parts), _versions(parts)])


def manifests(contents: Contents) -> list[tuple[str, str]]:
    """Return each part's title and its whole manifest, indented."""
    found = [(part.title, part.raw_manifest) for part in contents.parts if part.raw_manifest]
    if contents.raw_study:
        found.insert(0, ("study", contents.raw_study))
    return [(name, json.dumps(content, indent=2, ensure_ascii=False)) for name, content in found]


def _stages(study: StudyManifest) -> ReportTable:
    """List the stages of a study and their cost."""
    headings = (
        Heading("Stage"),
        Heading("State"),
        Heading("Seconds", "number"),
        Heading("When"),
        Heading("Host"),
        Heading("Device"),
        Heading("Threads", "number"),
    )
    rows = []
    for stage in study.stages:
        threads = stage.where.get("threads")
        rows.append(
            (
                words(stage.label),
                words(stage.state),
                number(stage.seconds),
                words(_to_the_second(stage.when)),
                *(words(str(stage.where.get(key) or "")) for key in ("host", "device")),
                count(threads if isinstance(threads, int) else None),
            )
        )
    total = f", {study.seconds:,.0f} seconds of work in all" if study.seconds else ""
    caption = f"The stages of the study {study.study}{total}; times are UTC, and seconds are of the clock"
    return ReportTable("stages", caption, headings, tuple(rows))


def _runs(parts: list[ReportPart]) -> ReportTable:
    headings = (
        Heading("Run"),
        Heading("Command", "long"),
        Heading("Seed", "number"),
        Heading("State"),
        Heading("Seconds", "number"),
        Heading("Passes", "number", "forward, backward"),
        Heading("When"),
        Heading("Machine", "long"),
    )
    rows = []
    for part in parts:
        made, provenance = part.manifest, part.manifest.provenance
        seconds = [entry.total_seconds for entry in made.checkpoints if entry.total_seconds is not None]
        machine = [provenance.device, provenance.processor, provenance.platform] if provenance else []
        rows.append(
            (
                words(part.title),
                words(" ".join(provenance.command) if provenance else ""),
                count(made.seed),
                Cell({True: "complete", False: "incomplete", None: "not said"}[made.complete]),
                number(sum(seconds) if seconds else None),
                _passes(part),
                words(_time(provenance)),
                words(", ".join(dict.fromkeys(piece for piece in machine if piece))),
            )
        )
    caption = (
        "The runs, what they cost, and the machine; seconds are those of all models together, passes are those of the "
        "attacks that count them, over all images; times are UTC"
    )
    return ReportTable("runs", caption, headings, tuple(rows))


def _settings(parts: list[ReportPart]) -> ReportTable:
    """List the attacks of each run with their settings."""
    rows = []
    for part in parts:
        for name, settings in part.manifest.attacks.items():
            meaning = str(settings.get("meaning", "")) if isinstance(settings, Mapping) else ""
            rows.append((words(part.title), words(name), words(describe_attack(settings) or meaning)))
        if described := describe_attack(part.raw_manifest.get("budget")):
            rows.append((words(part.title), words("budget"), words(f"{described}, for every attack that needs it")))
    return ReportTable("settings", "The attacks as they were set", _SETTINGS, tuple(rows))


_SETTINGS = (Heading("Run"), Heading("Attack"), Heading("Settings", "long"))


def _time(provenance: Provenance | None) -> str:
    """Return when a run was made, to the second."""
    return _to_the_second(provenance.time) if provenance else ""


def _to_the_second(time: str | None) -> str:
    return (time or "").replace("T", " ").removesuffix("+00:00")


def _passes(part: ReportPart) -> Cell:
    rows = part.table(ATTACKS)
    totals = []
    for metric in ("forward", "backward"):
        mine = rows[rows["metric"] == metric]
        totals.append(int((mine["value"].fillna(0) * mine["n"]).sum()) if len(mine) else 0)
    if not any(totals):
        return words("")
    return Cell(f"{totals[0]:,}, {totals[1]:,}", key=float(totals[0]))


def _data(parts: list[ReportPart]) -> ReportTable:
    headings = (
        Heading("Run"),
        Heading("Data"),
        Heading("Split"),
        Heading("Images", "number"),
        Heading("Of", "number"),
        Heading("Fingerprint", "long"),
    )
    rows = {
        (part.title, entry.data): None
        for part in parts
        for entry in part.manifest.checkpoints
        if entry.data is not None
    }
    cells = tuple(
        (words(run), words(one.name), words(one.split), count(one.images), count(one.of), words(one.fingerprint))
        for run, one in rows
    )
    return ReportTable("data", "The images that were examined; the fingerprint is of their content", headings, cells)


def _checkpoints(parts: list[ReportPart]) -> ReportTable:
    headings = (
        Heading("Model"),
        Heading("File"),
        Heading("SHA-256", "long"),
        Heading("Trained by", "long"),
        Heading("On"),
        Heading("Runs"),
    )
    runs: dict[tuple[str, str, str], list[str]] = {}
    trained: dict[tuple[str, str, str], Provenance | None] = {}
    for part in parts:
        for entry in part.manifest.checkpoints:
            key = (entry.label, entry.source or "", entry.sha256 or "")
            runs.setdefault(key, []).append(part.title)
            trained[key] = entry.trained or trained.get(key)
    rows = []
    for key, names in runs.items():
        made = trained[key]
        rows.append(
            (
                *(words(value) for value in key),
                words(" ".join(made.command) if made else ""),
                words(", ".join(piece for piece in (made.device, _time(made)) if piece) if made else ""),
                words(", ".join(names)),
            )
        )
    caption = "The checkpoints: which file, the digest of its bytes, and the command that trained it"
    return ReportTable("checkpoints", caption, headings, tuple(rows))


def _versions(parts: list[ReportPart]) -> ReportTable:
    versions: dict[str, dict[str, str]] = {}
    for part in parts:
        provenance = part.manifest.provenance
        if provenance is None:
            continue
        own = {"gradscope": provenance.gradscope, "commit": provenance.commit, "Python": provenance.python}
        for name, version in {**own, **provenance.packages}.items():
            if version:
                versions.setdefault(name, {})[part.title] = version
    runs = [part.title for part in parts if part.manifest.provenance]
    rows = []
    for name, found in versions.items():
        for version in dict.fromkeys(found.values()):
            having = [run for run in runs if found.get(run) == version]
            rows.append((words(name), words(version), words("all" if having == runs else ", ".join(having))))
    headings = (Heading("Package"), Heading("Version", "long"), Heading("Runs", "long"))
    return ReportTable("versions", "Versions", headings, tuple(rows))
