"""Read directories of results from anywhere, such as the studies of two machines, as one study."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gradscope.claims.effects import shared
from gradscope.claims.measured import Findings, Measured, MeasuredModel
from gradscope.claims.reading import HISTORIES, TABLES, read_study
from gradscope.errors import GradscopeError
from gradscope.results.manifest import MANIFEST, read_object, read_study_manifest
from gradscope.results.schemas import SAMPLES
from gradscope.results.tables import find_table

#: The kind of a whole study's manifest.
_STUDY = "study"
#: The supported version of manifests, and the version of a manifest that names none.
_SCHEMA = 1
#: A study, or a single directory of results, with its directories of results.
_Source = tuple[Path, list[Path]]


def read_directories(directories: Sequence[Path]) -> Findings:
    """Read the results in ``directories``, or at any depth below them, as one study.

    Each study, and each directory of results outside of a study, is read separately; :func:`joined` joins them. A
    training history belongs to the results in the same one of ``directories``. The histories of a directory without
    results, such as ``checkpoints/NAME``, belong to all. Raises :class:`GradscopeError` if a directory holds neither, a
    file is damaged, or results are of a kind or schema that this version does not support.
    """
    seen: set[Path] = set()
    trees = []
    for directory in directories:
        if not directory.is_dir():
            raise GradscopeError(f"directory must be a directory of results, got {directory}")
        repeated = directory.resolve() in seen
        sources, histories = list(_sources(directory, seen)), _folders_of_histories(directory)
        if not (sources or histories or repeated):
            raise GradscopeError(
                f"directory must hold results, itself or below, got {directory}, which has no {SAMPLES.file} and no "
                f"{MANIFEST} of results"
            )
        trees.append((sources, histories))
    common = [folder for sources, histories in trees if not sources for folder in histories]
    studies = {
        path: read_study(list(dict.fromkeys([*results, *histories, *common])))
        for sources, histories in trees
        for path, results in sources
    }
    if not any(study.measured for study in studies.values()):
        notes = "; ".join(note for study in studies.values() for note in study.notes)
        raise GradscopeError(
            f"directory must hold values of each image ({SAMPLES.file}), on which claims are tested; got "
            f"{', '.join(map(str, directories))}" + (f" ({notes})" if notes else "")
        )
    return joined(studies)


def _sources(directory: Path, seen: set[Path]) -> Iterator[_Source]:
    """Find the studies in ``directory``, and the directories of results outside of studies; skip those in ``seen``.

    A study consists of the directories that its manifest names, in that order.
    """
    if directory.resolve() in seen:
        return
    seen.add(directory.resolve())
    manifest = directory / MANIFEST
    kind = _kind(manifest) if manifest.exists() else ""
    if kind in TABLES or find_table(directory / SAMPLES.file):
        yield directory, [directory]
        return
    folders = _folders(directory)
    if kind == _STUDY:
        known = {folder.name: folder for folder in folders}
        named = [stage.folder for stage in read_study_manifest(manifest)[0].stages if stage.folder]
        folders = [known[name] for name in named if name in known]
    sources = [source for folder in folders for source in _sources(folder, seen)]
    if kind == _STUDY and sources:
        yield directory, [path for _, results in sources for path in results]
    else:
        yield from sources


def _kind(manifest: Path) -> str:
    """Read the kind of results from ``manifest``, empty if it has none; raises GradscopeError for an unknown kind."""
    content = read_object(manifest)
    kind, schema = content.get("kind", ""), content.get("schema", _SCHEMA)
    if schema != _SCHEMA:
        raise GradscopeError(f"directory: {manifest} must be of schema {_SCHEMA}, got {schema!r} of another gradscope")
    known = (*TABLES, _STUDY)
    if kind not in ("", *known):
        raise GradscopeError(f"directory: {manifest} must be of a kind of {', '.join(known)}, got {kind!r}")
    return str(kind)


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise GradscopeError(f"directory: {directory} cannot be read: {error.strerror}") from None


def _folders_of_histories(directory: Path) -> list[Path]:
    """Find the directories in and below ``directory`` that hold training histories."""
    return sorted({path.parent for path in directory.rglob(f"{HISTORIES}*")})


def joined(studies: Mapping[Path, Findings]) -> Findings:
    """Join studies, keyed by their paths, into one.

    Models are identified by their fingerprint or the SHA-256 of their file. A measurement with equal values in several
    studies counts once. Raises :class:`GradscopeError` if two studies hold different models of the same data set,
    architecture, mode and seed, or different values of the same measurement of a model.
    """
    whole = Findings()
    owners: dict[MeasuredModel, Path] = {}
    measured: dict[tuple[object, ...], list[tuple[Path, Measured]]] = {}
    for path, study in studies.items():
        known = {model: _identified(model, path, owners) for model in study.models}
        owners |= {model: path for model in known.values() if model not in owners}
        for value in study.measured:
            source = known[value.source] if value.source else None
            own = replace(value, model=known[value.model], source=source)
            way = (own.model, source, own.kind, own.attack, own.ball, own.metric, own.point, own.settings, own.how)
            elsewhere = [(where, other) for where, other in measured.get(way, []) if where != path]
            repeated = [_is_repeated(own, path, other, where) for where, other in elsewhere]
            if not any(repeated):
                measured.setdefault(way, []).append((path, own))
                whole.measured.append(own)
        for model, course in study.courses.items():
            kept = whole.courses.get(known[model])
            if kept is None or kept.history is None:
                whole.courses[known[model]] = course
        for model, verdict in study.verdicts.items():
            whole.verdicts.setdefault(known[model], verdict)
        for (model, other), cosine in study.similarities.items():
            whole.similarities.setdefault((known[model], known[other]), cosine)
        whole.notes += study.notes
    whole.models = list(owners)
    return whole


def _identified(model: MeasuredModel, path: Path, owners: Mapping[MeasuredModel, Path]) -> MeasuredModel:
    """Find the same model in an earlier study than the one in ``path``; else return ``model``."""
    key = (model.dataset, model.arch, model.mode, model.seed)
    elsewhere = [known for known in owners if owners[known] != path]
    rivals = [known for known in elsewhere if (known.dataset, known.arch, known.mode, known.seed) == key]
    same = [known for known in rivals if known.is_same(model)]
    if rivals and not same and model.seed is not None:
        raise GradscopeError(
            f"directory: {owners[rivals[0]]} and {path} hold different models of {model.dataset}, {model.arch}, mode "
            f"{model.mode}, seed {model.seed} (SHA-256 {rivals[0].file[:8]} and {model.file[:8]}); judge them "
            "separately, or train with different seeds"
        )
    return same[0] if same else model


def _is_repeated(value: Measured, path: Path, other: Measured, other_path: Path) -> bool:
    """Whether ``other`` has all images of ``value``; raises GradscopeError if an image's values differ."""
    images = shared([value, other])
    if not value.of_images.reindex(images).equals(other.of_images.reindex(images)):
        attack = f" under {value.attack}" if value.attack else ""
        raise GradscopeError(
            f"directory: {other_path} and {path} hold different values of one measurement of {value.model.name} "
            f"({value.metric}{attack}, {value.point}); leave one of them out"
        )
    return len(images) == len(value.of_images)
