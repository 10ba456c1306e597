"""``gradscope audit``."""

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli import options

#: Exit code where --fail-on-masking is set and a model is masked, or cannot be judged as it is set up.
MASKED = 3


def audit(
    checkpoints: options.Checkpoints,
    budget: Annotated[
        str,
        typer.Option(
            help="quick (a minute for a small model and 200 images), standard, or full (attacks at their usual size)",
            autocompletion=options.completing("gradscope.audit.budgets", "BUDGETS"),
        ),
    ] = "standard",
    norm: options.Norm = "l2",
    epsilon: options.Epsilon = None,
    surrogate: Annotated[
        list[str] | None,
        typer.Option(metavar="CKPT", help="another model whose adversarial examples are tried too; repeatable"),
    ] = None,
    fail_on_masking: Annotated[
        bool,
        typer.Option("--fail-on-masking", help="exit with 3 where masking is found or the set-up is invalid"),
    ] = False,
    samples: Annotated[
        int | None, typer.Option(help="test images, drawn by --seed; 200, 500 or 1000 by budget, or all there are")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="images attacked at once")] = None,
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
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished audit at --out")] = False,
    overwrite: options.Overwrite = False,
    no_figures: options.NoFigures = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT-audit")] = None,
) -> None:
    """Say whether a model's robustness is real or its gradients are masked, with the evidence and the cause."""
    from gradscope.config import Balls
    from gradscope.report.printed import audit_lines
    from gradscope.results.audits import Audits, read_document
    from gradscope.results.rows import AUDIT_JSON
    from gradscope.study.audits import AuditRequest, run_audits

    request = AuditRequest(
        balls=Balls.parse(options.given(norm=norm, epsilon=epsilon)),
        budget=budget,
        samples=samples,
        batch_size=batch_size,
        surrogates=tuple(surrogate or ()),
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
    results = run_audits(checkpoints, request, foreign, options.results_folder(out, checkpoints, "-audit"))
    if options.is_first_process():
        print(audit_lines(results))
        print(results)
    if fail_on_masking and any(found.blocks for found in Audits.parse(read_document(results / AUDIT_JSON)).audits):
        raise typer.Exit(MASKED)
