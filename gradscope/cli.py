"""The command line: each command parses, calls one function and prints where the result is.

torch is imported by the command that needs it, so ``--help`` answers at once.
"""

import logging
import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import gradscope
from gradscope.errors import GradscopeError

#: click's error for a command line it cannot read; typer's versions differ in where they keep click.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="gradscope",
    help="See an image classifier as a gradient-based attacker does, and tell whether its robustness is real.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

#: Exit code after Ctrl-C, which typer turns into it.
INTERRUPTED = 130

CHECKPOINTS = "our .pt files, or foreign models: torchvision:NAME, timm:NAME, package.module:factory"

Checkpoints = Annotated[list[str], typer.Argument(metavar="CKPT...", help=CHECKPOINTS, show_default=False)]
DataRoot = Annotated[Path | None, typer.Option(help="where the data set's files are")]
ImageSize = Annotated[int | None, typer.Option(help="side in pixels to which 'folder' and 'imagenet100' are resized")]
Download = Annotated[bool, typer.Option("--download", help="allow downloading the data set")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what --out holds")]
Norm = Annotated[str, typer.Option(help="l2 or linf")]
Epsilon = Annotated[str | None, typer.Option(help="radius in pixel units, 0.5 or 8/255; 1.0 for l2, 8/255 for linf")]
StepSize = Annotated[str | None, typer.Option(help="length of a step; 0.1 for l2, 2/255 for linf")]
Loss = Annotated[
    str | None, typer.Option(help="what the attack climbs: cross-entropy, rescaled-cross-entropy, margin or dlr")
]
Samples = Annotated[int | None, typer.Option(help="test images, drawn by --seed; 500 or all there are")]
Seed = Annotated[int, typer.Option(min=0, help="decides images and random starts")]
Start = Annotated[str | None, typer.Option(help="none, ball or cube; of the attack where not given")]
Box = Annotated[bool | None, typer.Option("--box/--no-box", help="keep iterates in [0, 1]; of the attack")]
Reduction = Annotated[str | None, typer.Option(help="of the attack's loss over the batch: sum or mean")]
NormFloor = Annotated[float | None, typer.Option(help="L2 gradient norm below which a step shrinks")]
Precision = Annotated[str | None, typer.Option(help="of the attack: float32 or float64")]
Dataset = Annotated[str | None, typer.Option(help="data to examine on; the checkpoint's own where not given")]
Weights = Annotated[list[Path] | None, typer.Option(help="weights of a foreign model; once for each, in order")]
Mean = Annotated[str | None, typer.Option(help="normalisation of a foreign model, such as 0.49,0.48,0.45")]
Std = Annotated[str | None, typer.Option(help="see --mean")]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="run the code of package.module:factory")]
IgnoreClassNames = Annotated[
    bool, typer.Option("--ignore-class-names", help="take the checkpoint's classes for the data's, in order")
]


class Listing(StrEnum):
    """What ``gradscope list`` knows."""

    datasets = "datasets"
    architectures = "architectures"
    metrics = "metrics"
    attacks = "attacks"
    objectives = "objectives"
    modes = "modes"


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


def _completing(source: str, table: str) -> Any:
    """Completion by the names of a table; its module is imported when the shell asks."""

    def names(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",")
        return [f"{done}{comma}{name}" for name in getattr(import_module(source), table) if name.startswith(last)]

    return names


def _version(asked: bool) -> None:
    if asked:
        print(f"gradscope {gradscope.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _gradscope(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def train(
    mode: Annotated[
        str,
        typer.Option(
            help="sl, rl, sl-adv, rl-adv, sl-rl, rl-sl, or any label with --config phases",
            autocompletion=_completing("gradscope.training.phases", "MODES"),
        ),
    ],
    dataset: Annotated[str | None, typer.Option(help="see `gradscope list datasets`; digits where not given")] = None,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    arch: Annotated[str | None, typer.Option(help="see `gradscope list architectures`; sized for the data")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="epochs in all, shared by the phases, at least one each")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="images an update, over all devices")] = None,
    seed: Annotated[int | None, typer.Option(help="decides weights, order, augmentation and actions")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="the paper's architecture, schedule and augmentation")] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file laid over the mode's preset")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="such as phases.0.exploration=0.3; repeatable"),
    ] = None,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(min=1, help="processes, one a device, that share each batch")] = 1,
    precision: Annotated[str | None, typer.Option(help="32, or bf16 autocast (training only)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run at --out")] = False,
    keep_epochs: Annotated[
        bool, typer.Option("--keep-epochs", help="keep the weights after every epoch, in NAME.epochs")
    ] = False,
    overwrite: Overwrite = False,
    out: Annotated[Path | None, typer.Option(help="checkpoint file; checkpoints/DATA-ARCH-MODE-sSEED.pt")] = None,
) -> None:
    """Train a classifier: supervised, by policy gradient, adversarially, or in phases of these."""
    from gradscope.config import read_toml
    from gradscope.study.stages import configure_training, run_training
    from gradscope.training.hardware import Hardware

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces devices and precision
    data = _given(dataset=dataset, data_root=data_root, image_size=image_size)
    options = _given(architecture=arch, batch_size=batch_size, seed=seed, precision=precision)
    training, splits = configure_training(
        mode,
        data,
        paper=paper,
        table={} if config is None else read_toml(config),
        settings=settings or [],
        epochs=epochs,
        options=options,
        download=download,
    )
    name = f"{splits.train.name}-{training.architecture}-{training.mode}-s{training.seed}.pt"
    path = out or Path("checkpoints") / name
    hardware = Hardware(device, devices)
    trained = run_training(
        training, splits, path, hardware, resume=resume, overwrite=overwrite, keep_epochs=keep_epochs
    )
    low, high = trained.test_interval
    if hardware.is_first:
        print(
            f"{trained.path}  clean accuracy {100 * trained.test_accuracy:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}] on {trained.test_images} test images"
        )


@app.command()
def analyze(
    checkpoints: Checkpoints,
    metrics: Annotated[
        str,
        typer.Option(
            help="comma-separated, see `gradscope list metrics`; all of them",
            autocompletion=_completing("gradscope.results.rows", "METRICS"),
        ),
    ] = "all",
    attack: Annotated[
        str,
        typer.Option(
            help="comma-separated: pgd (exact), pgd-paper (the paper's, to the letter)",
            autocompletion=_completing("gradscope.config", "ATTACKS"),
        ),
    ] = "pgd",
    norm: Norm = "l2",
    epsilon: Epsilon = None,
    step_size: StepSize = None,
    steps: Annotated[int | None, typer.Option(help="steps of the attack; 100")] = None,
    loss: Loss = None,
    start: Start = None,
    restarts: Annotated[
        int | None, typer.Option(help="random starts; the first is measured, all count for 'worst'")
    ] = None,
    box: Box = None,
    reduction: Reduction = None,
    norm_floor: NormFloor = None,
    precision: Precision = None,
    samples: Samples = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="images attacked at once; 128 where the attack averages over them")
    ] = None,
    seed: Seed = 0,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    trust_code: TrustCode = False,
    ignore_class_names: IgnoreClassNames = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT")] = None,
) -> None:
    """Measure gradients, loss, entropy and accuracy along PGD, for one checkpoint or many side by side."""
    from gradscope.config import ATTACKS, attack_settings
    from gradscope.report.printed import analysis_lines
    from gradscope.results.rows import METRICS
    from gradscope.study.analysis import Analysis
    from gradscope.study.stages import run_analysis

    changes = _given(
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        loss=loss,
        start=start,
        restarts=restarts,
        box=box,
        reduction=reduction,
        norm_floor=norm_floor,
        precision=precision,
    )
    analysis = Analysis(
        attacks={name: attack_settings(name, changes) for name in _checked(_names(attack), ATTACKS, "--attack")},
        metrics=frozenset(METRICS if metrics == "all" else _checked(_names(metrics), METRICS, "--metrics")),
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        device=device,
        data=_given(dataset=dataset, data_root=data_root, image_size=image_size),
        download=download,
        overwrite=overwrite,
    )
    foreign = _foreign(weights, mean, std, trust_code, ignore_class_names)
    results = run_analysis(checkpoints, analysis, foreign, out or Path("reports") / _stem(checkpoints[0]))
    print(analysis_lines(results))
    print(results)


@app.command()
def landscape(
    checkpoints: Checkpoints,
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
    attack: Annotated[
        str,
        typer.Option(help="pgd (exact) or pgd-paper", autocompletion=_completing("gradscope.config", "ATTACKS")),
    ] = "pgd",
    norm: Norm = "l2",
    epsilon: Epsilon = None,
    step_size: StepSize = None,
    steps: Annotated[int | None, typer.Option(help="steps of the attack; 100, in weight space 5")] = None,
    loss: Loss = None,
    start: Start = None,
    box: Box = None,
    reduction: Reduction = None,
    norm_floor: NormFloor = None,
    precision: Precision = None,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    trust_code: TrustCode = False,
    ignore_class_names: IgnoreClassNames = False,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished landscape at --out")] = False,
    overwrite: Overwrite = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT-SPACE-landscape")] = None,
) -> None:
    """Draw the loss on planes around images or around the weights, and what compares checkpoints there."""
    from gradscope.config import ATTACKS, attack_settings, short_attack_settings
    from gradscope.errors import lookup
    from gradscope.report.printed import landscape_lines
    from gradscope.study.input_landscapes import InputLandscape, run_input_landscape
    from gradscope.study.weight_landscapes import WeightLandscape, run_weight_landscape

    lookup(ATTACKS, attack, "--attack")
    changes = _given(
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
        "data": _given(dataset=dataset, data_root=data_root, image_size=image_size),
        "download": download,
        "resume": resume,
        "overwrite": overwrite,
    }
    foreign = _foreign(weights, mean, std, trust_code, ignore_class_names)
    folder = out or Path("reports") / f"{_stem(checkpoints[0])}-{space.value}-landscape"
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
        for name in () if adversarial else changes.keys() - {"norm"}:
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
    print(landscape_lines(results))
    print(results)


@app.command()
def attack(
    checkpoints: Checkpoints,
    attacks: Annotated[
        str,
        typer.Option(
            help="comma-separated, in the order they are run, or all; see `gradscope list attacks`",
            autocompletion=_completing("gradscope.attacks.battery", "BATTERY"),
        ),
    ] = "pgd,apgd-ce,apgd-t,square",
    norm: Norm = "l2",
    epsilon: Epsilon = None,
    epsilons: Annotated[str | None, typer.Option(help="radii of a curve, such as 0.25,0.5,1.0")] = None,
    step_size: Annotated[
        str | None, typer.Option(help="of the gradient attacks, pixel units; 2.5 epsilon / steps")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="of every gradient attack; 100")] = None,
    restarts: Annotated[int | None, typer.Option(help="random starts of pgd-restarts; 10")] = None,
    smoothing: Annotated[int | None, typer.Option(help="copies a step of pgd-smooth; 16")] = None,
    targets: Annotated[int | None, typer.Option(help="wrong classes that apgd-t and fab-t aim at; 9")] = None,
    queries: Annotated[int | None, typer.Option(help="forward passes of square; 5000")] = None,
    draws: Annotated[int | None, typer.Option(help="random points of noise; 1000")] = None,
    surrogate: Annotated[
        list[str] | None,
        typer.Option(metavar="CKPT", help="a model whose examples transfer and pgd-from use; repeatable"),
    ] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade/--no-cascade", help="each attack on what still stands, or on all that is right")
    ] = True,
    samples: Samples = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="images attacked at once")] = None,
    seed: Seed = 0,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    trust_code: TrustCode = False,
    ignore_class_names: IgnoreClassNames = False,
    device: Device = "auto",
    save_images: Annotated[
        bool,
        typer.Option("--save-images", help="keep the adversarial images, in adversarial.npz, and judge them again"),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished attack at --out")] = False,
    overwrite: Overwrite = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT-attack")] = None,
) -> None:
    """Attack with many methods and find the lowest robust accuracy: right when clean and under every attack."""
    from gradscope.attacks.battery import BATTERY
    from gradscope.config import Balls, Budget
    from gradscope.report.printed import attack_lines
    from gradscope.study.attacks import Battery, run_attacks

    budget = _given(
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        smoothing=smoothing,
        targets=targets,
        queries=queries,
        draws=draws,
    )
    radii = {"epsilons": epsilons.split(",")} if epsilons is not None else {}
    battery = Battery(
        attacks=tuple(BATTERY if attacks == "all" else _checked(_names(attacks), BATTERY, "--attacks")),
        balls=Balls.parse(_given(norm=norm, epsilon=epsilon) | radii),
        budget=Budget.parse(budget),
        samples=samples,
        batch_size=batch_size,
        cascade=cascade,
        surrogates=tuple(surrogate or ()),
        save_images=save_images,
        seed=seed,
        device=device,
        data=_given(dataset=dataset, data_root=data_root, image_size=image_size),
        download=download,
        resume=resume,
        overwrite=overwrite,
    )
    foreign = _foreign(weights, mean, std, trust_code, ignore_class_names)
    results = run_attacks(checkpoints, battery, foreign, out or Path("reports") / f"{_stem(checkpoints[0])}-attack")
    print(attack_lines(results))
    print(results)


@app.command()
def transfer(
    checkpoints: Checkpoints,
    attack: Annotated[
        str,
        typer.Option(help="pgd (exact) or pgd-paper", autocompletion=_completing("gradscope.config", "ATTACKS")),
    ] = "pgd",
    norm: Norm = "l2",
    epsilon: Epsilon = None,
    step_size: StepSize = None,
    steps: Annotated[int | None, typer.Option(help="steps of the attack; 100")] = None,
    loss: Loss = None,
    start: Start = None,
    box: Box = None,
    reduction: Reduction = None,
    norm_floor: NormFloor = None,
    precision: Precision = None,
    samples: Samples = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="images attacked at once; 128 where the attack averages over them")
    ] = None,
    seed: Seed = 0,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    image_size: ImageSize = None,
    download: Download = False,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    trust_code: TrustCode = False,
    ignore_class_names: IgnoreClassNames = False,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished transfer at --out")] = False,
    overwrite: Overwrite = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT-transfer")] = None,
) -> None:
    """Judge the adversarial examples made on each checkpoint on every other, and on itself."""
    from gradscope.config import attack_settings
    from gradscope.report.printed import transfer_lines
    from gradscope.study.transfer import TransferMatrix, run_transfer

    changes = _given(
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
    matrix = TransferMatrix(
        attack=attack,
        settings=attack_settings(attack, changes),
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        device=device,
        data=_given(dataset=dataset, data_root=data_root, image_size=image_size),
        download=download,
        resume=resume,
        overwrite=overwrite,
    )
    foreign = _foreign(weights, mean, std, trust_code, ignore_class_names)
    results = run_transfer(checkpoints, matrix, foreign, out or Path("reports") / f"{_stem(checkpoints[0])}-transfer")
    print(transfer_lines(results))
    print(results)


@app.command()
def figures(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a directory of results")],
) -> None:
    """Redraw the figures of a directory of results from its CSV files alone."""
    from gradscope.report.figures import draw

    for path in draw(directory):
        print(path)


@app.command(name="list")
def list_names(what: Annotated[Listing, typer.Argument(help="what to list", show_default=False)]) -> None:
    """List the names that the other commands know."""
    for name, meaning in _listing(what).items():
        print(f"{name:18} {meaning}")


def _listing(what: Listing) -> dict[str, str]:
    if what is Listing.datasets:
        from gradscope.data.sources import DATASETS

        return {name: source.description for name, source in DATASETS.items()}
    if what is Listing.architectures:
        from gradscope.models.architectures import ARCHITECTURES

        return {name: architecture.description for name, architecture in ARCHITECTURES.items()}
    if what is Listing.metrics:
        from gradscope.results.rows import METRICS

        return {name: f"{metric.meaning} [{metric.unit}]" for name, metric in METRICS.items()}
    if what is Listing.modes:
        from gradscope.training.phases import MODES

        return MODES
    if what is Listing.attacks:
        from gradscope.attacks.battery import BATTERY

        return {
            name: f"{one.meaning} [{', '.join(['logits', *sorted(one.needs)])}"
            + (f"; {one.classes} classes or more]" if one.classes > 2 else "]")
            for name, one in BATTERY.items()
        }
    from gradscope.config import OBJECTIVES

    return dict(OBJECTIVES)


def _require_unset(space: str, other: str, **options: object) -> None:
    """Options of the other space are refused: they would silently do nothing."""
    for name, value in options.items():
        if value not in (None, False):
            argument = f"--{name.replace('_', '-')}"
            raise GradscopeError(f"{argument}: it belongs to --space {other}, got --space {space}")


def _foreign(
    weights: list[Path] | None, mean: str | None, std: str | None, trust_code: bool, ignore_class_names: bool
) -> Any:
    from gradscope.models.subject import Foreign

    normalisation = _numbers(mean, "--mean"), _numbers(std, "--std")
    return Foreign(tuple(weights or ()), *normalisation, trust_code, ignore_class_names)


def _stem(checkpoint: str) -> str:
    return Path(checkpoint.rpartition(":")[2]).stem


def _indices(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise GradscopeError(f"--index: whole numbers with commas between are allowed, got {text!r}") from None


def _given(**options: Any) -> dict[str, Any]:
    """The options that the command line gave."""
    return {name: value for name, value in options.items() if value is not None}


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _checked(names: list[str], known: dict[str, Any], argument: str) -> list[str]:
    from gradscope.errors import lookup

    for name in names:
        lookup(known, name, argument)
    if not names:
        raise GradscopeError(f"{argument}: at least one name is needed, known: {', '.join(known)}")
    return names


def _numbers(text: str | None, argument: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise GradscopeError(f"{argument}: numbers with commas between are allowed, got {text!r}") from None


def _usage(error: Any) -> str:
    """One line for click's error, and where the options are explained."""
    command = f"{error.ctx.command_path} --help" if error.ctx else "gradscope --help"
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    return f"{message.removesuffix('.')}; see `{command}`"


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    try:
        code = app(arguments, prog_name="gradscope", standalone_mode=False)
    except (GradscopeError, UsageError) as error:
        message = str(error) if isinstance(error, GradscopeError) else _usage(error)
        print(f"gradscope: {message}", file=sys.stderr)
        sys.exit(2)
    if code == INTERRUPTED:
        print("gradscope: interrupted; what was written stays, --resume continues", file=sys.stderr)
    sys.exit(code)
