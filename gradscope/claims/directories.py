"""Directories of results from anywhere, such as the studies of two machines, read as one study."""

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
#: The version of manifests that is read. One that does not say which it is has this one.
_SCHEMA = 1
#: A study, or a directory of results by itself, with its directories of results.
_Source = tuple[Path, list[Path]]


def read_directories(directories: Sequence[Path]) -> Findings:
    """Read the results in ``directories``, or at any depth below them, as one study.

    Each study below them, and each directory of results that is in none, is read for itself, then all are joined by
    :func:`joined`. A training history belongs to the results of the same one of ``directories``; those of a directory
    without results, such as ``checkpoints/NAME``, to all. Raises :class:`GradscopeError` where a directory holds
    neither, a file is damaged, or results are of a kind or a schema that this version does not know.
    """
    seen: set[Path] = set()
    trees = []
    for directory in directories:
        if not directory.is_dir():
            raise GradscopeError(f"directory must be a directory of results, got {directory}, which is no directory")
        again = directory.resolve() in seen
        sources, histories = list(_sources(directory, seen)), _folders_of_histories(directory)
        if not (sources or histories or again):
            raise GradscopeError(
                f"directory must hold results, itself or below, got {directory}, which has no {SAMPLES.file} and no "
                f"{MANIFEST} of results"
            )
        trees.append((sources, histories))
    apart = [folder for sources, histories in trees if not sources for folder in histories]
    studies = {
        path: read_study(list(dict.fromkeys([*results, *histories, *apart])))
        for sources, histories in trees
        for path, results in sources
    }
    if not any(study.measured for study in studies.values()):
        notes = "; ".join(note for study in studies.values() for note in study.notes)
        raise GradscopeError(
            f"directory must hold values by image ({SAMPLES.file}), which claims are tested on; got "
            f"{', '.join(map(str, directories))}" + (f" ({notes})" if notes else "")
        )
    return joined(studies)


def _sources(directory: Path, seen: set[Path]) -> Iterator[_Source]:
    """The studies in ``directory`` and the directories of results that are in none; ``seen`` are left out.

    Of a study those that its manifest names, in its order.
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
    found = [source for folder in folders for source in _sources(folder, seen)]
    if kind == _STUDY and found:
        yield directory, [path for _, results in found for path in results]
    else:
        yield from found


def _kind(manifest: Path) -> str:
    """The kind of results ``manifest`` is of, empty where it does not say; it must be one that is read here."""
    content = read_object(manifest)
    kind, schema = content.get("kind", ""), content.get("schema", _SCHEMA)
    if schema != _SCHEMA:
        raise GradscopeError(f"directory: {manifest} must be of schema {_SCHEMA}, got {schema!r}: of another gradscope")
    known = (*TABLES, _STUDY)
    if kind not in ("", *known):
        raise GradscopeError(f"directory: {manifest} must be of a kind known here ({', '.join(known)}), got {kind!r}")
    return str(kind)


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise GradscopeError(f"directory: {directory} cannot be read: {error.strerror}") from None


def _folders_of_histories(directory: Path) -> list[Path]:
    """The directories in and below ``directory`` that hold training histories."""
    return sorted({path.parent for path in directory.rglob(f"{HISTORIES}*")})


def joined(studies: Mapping[Path, Findings]) -> Findings:
    """Join studies, by where they lie, into one.

    A model is known by its fingerprint or the SHA-256 of its file. What is measured in several with equal values counts
    once. Raises :class:`GradscopeError` where two studies hold different models of one data set, architecture, mode and
    seed, or other values of one measurement of a model.
    """
    whole = Findings()
    owners: dict[MeasuredModel, Path] = {}
    measured: dict[tuple[object, ...], list[tuple[Path, Measured]]] = {}
    for path, study in studies.items():
        known = {model: _known(model, path, owners) for model in study.models}
        owners |= {model: path for model in known.values() if model not in owners}
        for one in study.measured:
            source = known[one.source] if one.source else None
            ours = replace(one, model=known[one.model], source=source)
            way = (ours.model, source, one.kind, one.attack, one.ball, one.metric, one.point, one.settings, one.how)
            elsewhere = [(where, other) for where, other in measured.get(way, []) if where != path]
            repeated = [_is_repeated(ours, path, other, where) for where, other in elsewhere]
            if not any(repeated):
                measured.setdefault(way, []).append((path, ours))
                whole.measured.append(ours)
        for model, course in study.courses.items():
            kept = whole.courses.get(known[model])
            if kept is None or kept.history is None:
                whole.courses[known[model]] = course
        for model, verdict in study.verdicts.items():
            whole.verdicts.setdefault(known[model], verdict)
        for (one_model, other), cosine in study.similarities.items():
            whole.similarities.setdefault((known[one_model], known[other]), cosine)
        whole.notes += study.notes
    whole.models = list(owners)
    return whole


def _known(model: MeasuredModel, path: Path, owners: Mapping[MeasuredModel, Path]) -> MeasuredModel:
    """The model of an earlier study that is ``model`` of the study in ``path``, else ``model`` itself."""
    what = (model.dataset, model.arch, model.mode, model.seed)
    alike = [one for one in owners if owners[one] != path and (one.dataset, one.arch, one.mode, one.seed) == what]
    same = [one for one in alike if one.is_same(model)]
    if alike and not same and model.seed is not None:
        raise GradscopeError(
            f"directory: {owners[alike[0]]} and {path} hold different models of {model.dataset}, {model.arch}, mode "
            f"{model.mode}, seed {model.seed} (SHA-256 {alike[0].file[:8]} and {model.file[:8]}); judge them apart, or "
            "train with different seeds"
        )
    return same[0] if same else model


def _is_repeated(one: Measured, path: Path, other: Measured, other_path: Path) -> bool:
    """Whether all that ``one`` measured ``other`` has, too; values of an image must be equal in both."""
    images = shared([one, other])
    if not one.of_images.reindex(images).equals(other.of_images.reindex(images)):
        attack = f" under {one.attack}" if one.attack else ""
        raise GradscopeError(
            f"directory: {other_path} and {path} hold the same measurement of {one.model.name} with other values "
            f"({one.metric}{attack}, {one.point}); leave one of them out"
        )
    return len(images) == len(one.of_images)
