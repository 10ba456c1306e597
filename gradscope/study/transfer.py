"""The transfer stage: examples made on each checkpoint, judged on every other and on itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from gradscope.attacks.pgd import threat_model
from gradscope.attacks.transfer import Transfer, make_examples, transfer
from gradscope.config import PGD
from gradscope.errors import GradscopeError
from gradscope.models.subject import Foreign
from gradscope.probes.trajectory import usual_batch_size
from gradscope.progress import Advance, progress_bar
from gradscope.results.rows import TRANSFER, TRANSFER_SAMPLES
from gradscope.results.stats import METHODS, wilson_interval
from gradscope.results.tables import write_json, write_table
from gradscope.sharing import Team, prefixed
from gradscope.study.directory import clear, resumable_directory
from gradscope.study.inputs import (
    DEFAULT_SAMPLES,
    Chosen,
    Request,
    Viewed,
    arithmetic,
    choose,
    describe,
    draw_figures,
    made_by,
    read_all,
)
from gradscope.study.ranks import on_every_rank
from gradscope.study.tiles import Tiles

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TransferMatrix(Request):
    """What ``transfer`` measures: which attack makes the examples, on how many test images."""

    attack: str
    settings: PGD
    samples: int | None = None
    batch_size: int | None = None
    resume: bool = False


def run_transfer(texts: Sequence[str], request: TransferMatrix, foreign: Foreign, out: Path) -> Path:
    """Make examples on every checkpoint, judge them on all, write CSV, manifest and figure to ``out``.

    The examples of each checkpoint are kept until all are judged, so that an interrupted run can be resumed.
    """
    check_transfer(len(texts), request)
    on_every_rank(request, partial(_run, texts, request, foreign, out))
    return out


def _run(texts: Sequence[str], request: TransferMatrix, foreign: Foreign, out: Path, team: Team) -> None:
    with resumable_directory(out, "transfer", team, resume=request.resume, overwrite=request.overwrite):
        viewed, splits = read_all(texts, request, foreign, team.device, "transfer")
        chosen = choose(splits.test, request.samples, DEFAULT_SAMPLES, request.seed, "--samples")
        manifest = _manifest(request, foreign, team, viewed, chosen)
        tiles = Tiles(out, _depends(manifest, chosen, team), team, resume=request.resume)
        wanted = 2 * len(viewed) * len(chosen.images)
        with progress_bar("transfer", wanted, visible=team.is_first) as advance:
            found = _judge(viewed, chosen, request, tiles, advance)
        if not team.is_first:
            return
        clear(out)
        write_table(out / TRANSFER.file, TRANSFER, _rows(found, viewed, chosen, request))
        write_table(out / TRANSFER_SAMPLES.file, TRANSFER_SAMPLES, _sample_rows(found, viewed, chosen, request))
        write_json(out / "manifest.json", manifest | {"complete": True})
        draw_figures(out, request)
        tiles.remove()


def check_transfer(models: int, request: TransferMatrix) -> None:
    """What is asked for must be possible, before anything is loaded."""
    if models < 2:
        raise GradscopeError(f"CKPT: two or more are allowed in a transfer, got {models}")
    if request.settings.epsilon == 0:
        raise GradscopeError("--epsilon: a number above 0 is allowed in an attack, got 0")


def _manifest(request: TransferMatrix, foreign: Foreign, team: Team, viewed: Sequence[Viewed], chosen: Chosen) -> Row:
    return {
        "kind": "transfer",
        "attacks": {request.attack: request.settings.model_dump()},
        "batch_size": request.batch_size or usual_batch_size(request.settings, team.device),
        "seed": request.seed,
        "intervals": METHODS,
        "foreign": {"mean": foreign.mean, "std": foreign.std},
        "complete": False,
        "checkpoints": [describe(one.reference, chosen) for one in viewed],
        "provenance": made_by(team),
    }


def _depends(manifest: Row, chosen: Chosen, team: Team) -> Row:
    return {
        "attack": manifest["attacks"],
        "batch_size": manifest["batch_size"],
        "seed": manifest["seed"],
        "checkpoint": [entry["sha256"] or entry["source"] for entry in manifest["checkpoints"]],
        "image": chosen.images.fingerprint,
        "normalisation": manifest["foreign"],
        **arithmetic(team),
    }


def _judge(
    viewed: Sequence[Viewed],
    chosen: Chosen,
    request: TransferMatrix,
    tiles: Tiles,
    advance: Advance,
) -> Transfer:
    """The examples of each checkpoint, from their files or made, and what every checkpoint makes of them."""
    device = tiles.team.device
    size = request.batch_size or usual_batch_size(request.settings, device)
    shared: Row = {"numbers": chosen.numbers, "seed": request.seed, "device": device, "batch_size": size}

    def examples_of(place: int, one: Viewed) -> Tensor:
        return make_examples(
            one.subject.model,
            chosen.images,
            request.settings,
            **shared,
            each=prefixed(tiles.each, str(place)),
            advanced=lambda done, note: advance(done, f"attacking {one.subject.label}"),
        )

    examples = {one.subject.label: examples_of(place, one) for place, one in enumerate(viewed)}
    models = {one.subject.label: one.subject.model for one in viewed}
    return transfer(
        models,
        chosen.images,
        examples,
        threat_model(request.settings),
        **shared,
        each=tiles.team.each,
        advanced=lambda done, target: advance(done, f"judging on {target}"),
    )


def _rows(found: Transfer, viewed: Sequence[Viewed], chosen: Chosen, request: TransferMatrix) -> Iterator[Row]:
    """The clean images of every target first, then source by source."""
    ball = {"norm": request.settings.norm, "epsilon": request.settings.epsilon}
    for source, attack, target, right in _cells(found, viewed, request):
        count, n = int(right.sum()), len(right)
        low, high = wilson_interval(count, n)
        share = {"accuracy": count / n, "ci_low": low, "ci_high": high, "n": n}
        yield {"source": source, **target.subject.identity(chosen.images.name, attack), **ball, **share}


def _sample_rows(found: Transfer, viewed: Sequence[Viewed], chosen: Chosen, request: TransferMatrix) -> Iterator[Row]:
    for source, attack, target, right in _cells(found, viewed, request):
        identity = {"source": source, **target.subject.identity(chosen.images.name, attack)}
        of_point = {"metric": "accuracy", "point": "final" if source else "clean", "unit": "-"}
        columns = found.numbers.tolist(), found.labels.tolist(), right.tolist()
        for index, label, value in zip(*columns, strict=True):
            yield identity | of_point | {"index": index, "label": label, "value": float(value)}


def _cells(
    found: Transfer, viewed: Sequence[Viewed], request: TransferMatrix
) -> Iterator[tuple[str, str, Viewed, Tensor]]:
    """Source, attack, target and which images the target gets right; the clean images have no source."""
    for place, target in enumerate(viewed):
        yield "", "none", target, found.clean[place]
    for source in found.sources:
        for target in viewed:
            yield source, request.attack, target, found.of(source, target.subject.label)
