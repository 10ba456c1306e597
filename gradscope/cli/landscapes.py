"""``gradscope landscape``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.cli import options
from gradscope.errors import GradscopeError, lookup


class Space(StrEnum):
    """Where a landscape is taken."""

    input = "input"
    weights = "weights"


class Plane(StrEnum):
    """Whose directions span the plane around an image."""

    own = "own"
    shared = "shared"


class BatchNorm(StrEnum):
    """What batch norm's statistics are where the weights are moved."""

    as_is = "as-is"
    re_estimated = "re-estimated"


def landscape(
    checkpoints: options.Checkpoints,
    space: Annotated[Space, typer.Option(help="around images, or around the network's weights")] = Space.input,
    points: Annotated[int, typer.Option(help="points a side; an odd number has the centre among them")] = 51,
    span: Annotated[
        float | None,
        typer.Option(
            help="input: 3 multiples of epsilon each way; weights: 1 multiple of the filters' norms, with --towards "
            "0.5 beyond either end, with --epochs 0.2 of their extent around them"
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="test images, drawn by --seed; 16 planes, or the mean over 256 in weight space")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="decides images, starts and random directions")] = 0,
    index: Annotated[str | None, typer.Option(help="input: these test images instead, such as 3,17")] = None,
    right: Annotated[bool, typer.Option("--right", help="input: images only that every CKPT is right about")] = False,
    plane: Annotated[
        Plane,
        typer.Option(
            help="input: own (a CKPT's adversarial direction, a random one) or shared (of the first two CKPT)"
        ),
    ] = Plane.own,
    line: Annotated[bool, typer.Option("--line", help="weights: along the first direction only")] = False,
    towards: Annotated[
        str | None, typer.Option(metavar="CKPT", help="weights: the first direction leads to this checkpoint")
    ] = None,
    epochs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="weights: principal directions of what `train --keep-epochs` kept"),
    ] = None,
    batch_norm: Annotated[
        BatchNorm, typer.Option(help="weights: statistics as they are, or taken anew at every point")
    ] = BatchNorm.as_is,
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="weights: also under the attack, made anew at every point, 5 steps")
    ] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY", help="weights: factory(images, labels) of a loss_landscapes metric; --trust-code"
        ),
    ] = None,
    attack: options.OneAttack = "pgd",
    norm: options.Norm = "l2",
    epsilon: options.Epsilon = None,
    step_size: options.StepSize = None,
    steps: Annotated[int | None, typer.Option(help="steps of the attack; 100, in weight space 5")] = None,
    loss: options.Loss = None,
    start: options.Start = None,
    box: options.Box = None,
    reduction: options.Reduction = None,
    norm_floor: options.NormFloor = None,
    precision: options.Precision = None,
    dataset: options.Dataset = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    download: options.Download = False,
    weights: options.Weights = None,
    mean: options.Mean = None,
    std: options.Std = None,
    trust_code: options.TrustCode = False,
    ignore_class_names: options.IgnoreClassNames = False,
    device: options.Device = "auto",
    devices: options.Devices = 1,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished landscape at --out")] = False,
    overwrite: options.Overwrite = False,
    no_figures: options.NoFigures = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT-SPACE-landscape")] = None,
) -> None:
    """Draw the loss on planes around images or around the weights, and what compares checkpoints there."""
    from gradscope.config import ATTACKS, attack_settings, short_attack_settings
    from gradscope.report.printed import landscape_lines
    from gradscope.study.input_landscapes import InputLandscape, run_input_landscape
    from gradscope.study.weight_landscapes import WeightLandscape, run_weight_landscape

    lookup(ATTACKS, attack, "--attack")
    changes = options.given(
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        loss=loss,
        start=start,
        box=box,
        reduction=reduction,
        norm_floor=norm_floor,
        precision=precision,
    )
    shared: dict[str, Any] = {
        "points": points,
        "images": images,
        "seed": seed,
        "device": device,
        "devices": devices,
        "data": options.given(dataset=dataset, data_root=data_root, image_size=image_size),
        "download": download,
        "resume": resume,
        "overwrite": overwrite,
        "figures": not no_figures,
    }
    foreign = options.read_foreign(weights, mean, std, trust_code, ignore_class_names)
    folder = options.results_folder(out, checkpoints, f"-{space.value}-landscape")
    if space is Space.input:
        _require_unset(
            *("input", "weights"),
            line=line,
            towards=towards,
            epochs=epochs,
            batch_norm=batch_norm is not BatchNorm.as_is,
            adversarial=adversarial,
            metric=metric,
        )
        around_images = InputLandscape(
            **shared,
            attack=attack,
            settings=attack_settings(attack, changes),
            span=3.0 if span is None else span,
            indices=_indices(index),
            right=right,
            shared=plane is Plane.shared,
        )
        results = run_input_landscape(checkpoints, around_images, foreign, folder)
    else:
        _require_unset("weights", "input", index=index, right=right, plane=plane is not Plane.own)
        for name in [] if adversarial else [name for name in changes if name != "norm"]:
            raise GradscopeError(f"--{name.replace('_', '-')}: in weight space it belongs to --adversarial")
        around_weights = WeightLandscape(
            **shared,
            attack=attack if adversarial else "none",
            settings=short_attack_settings(attack, changes) if adversarial else None,
            span=span,
            line=line,
            towards=towards,
            epochs=epochs,
            reestimate=batch_norm is BatchNorm.re_estimated,
            metric=metric,
        )
        results = run_weight_landscape(checkpoints, around_weights, foreign, folder)
    if options.is_first_process():
        print(landscape_lines(results))
        print(results)


def _require_unset(space: str, other: str, **refused: object) -> None:
    """Options of the other space are refused: they would silently do nothing."""
    for name, value in refused.items():
        if value not in (None, False):
            argument = f"--{name.replace('_', '-')}"
            raise GradscopeError(f"{argument}: it belongs to --space {other}, got --space {space}")


def _indices(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise GradscopeError(f"--index: whole numbers with commas between are allowed, got {text!r}") from None
