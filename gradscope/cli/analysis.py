"""``gradscope analyze``."""

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli import options


def analyze(
    checkpoints: options.Checkpoints,
    metrics: Annotated[
        str,
        typer.Option(
            help="comma-separated, see `gradscope list metrics`; all of them",
            autocompletion=options.completing("gradscope.results.rows", "METRICS"),
        ),
    ] = "all",
    attack: Annotated[
        str,
        typer.Option(
            help="comma-separated: pgd (exact), pgd-paper (the paper's, to the letter)",
            autocompletion=options.completing("gradscope.config", "ATTACKS"),
        ),
    ] = "pgd",
    norm: options.Norm = "l2",
    epsilon: options.Epsilon = None,
    step_size: options.StepSize = None,
    steps: options.Steps = None,
    loss: options.Loss = None,
    start: options.Start = None,
    restarts: Annotated[
        int | None, typer.Option(help="random starts; the first is measured, all count for 'worst'")
    ] = None,
    box: options.Box = None,
    reduction: options.Reduction = None,
    norm_floor: options.NormFloor = None,
    precision: options.Precision = None,
    samples: options.Samples = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = 0,
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
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished analysis at --out")] = False,
    overwrite: options.Overwrite = False,
    no_figures: options.NoFigures = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT")] = None,
) -> None:
    """Measure gradients, loss, entropy and accuracy along PGD, for one checkpoint or many side by side."""
    from gradscope.config import ATTACKS, attack_settings
    from gradscope.report.printed import analysis_lines
    from gradscope.results.rows import METRICS
    from gradscope.study.analysis import Analysis
    from gradscope.study.stages import run_analysis

    changes = options.given(
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
        attacks={name: attack_settings(name, changes) for name in options.known_names(attack, ATTACKS, "--attack")},
        metrics=frozenset(METRICS if metrics == "all" else options.known_names(metrics, METRICS, "--metrics")),
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        device=device,
        devices=devices,
        data=options.given(dataset=dataset, data_root=data_root, image_size=image_size),
        download=download,
        resume=resume,
        overwrite=overwrite,
        figures=not no_figures,
    )
    foreign = options.read_foreign(weights, mean, std, trust_code, ignore_class_names)
    results = run_analysis(checkpoints, analysis, foreign, options.results_folder(out, checkpoints))
    if options.is_first_process():
        print(analysis_lines(results))
        print(results)
