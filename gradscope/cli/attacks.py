"""``gradscope attack`` and ``gradscope transfer``."""

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli import options


def attack(
    checkpoints: options.Checkpoints,
    attacks: Annotated[
        str,
        typer.Option(
            help="comma-separated, in the order they are run, or all; see `gradscope list attacks`",
            autocompletion=options.completing("gradscope.attacks.battery", "BATTERY"),
        ),
    ] = "pgd,apgd-ce,apgd-t,square",
    norm: options.Norm = "l2",
    epsilon: options.Epsilon = None,
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
    samples: options.Samples = None,
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
    save_images: Annotated[
        bool,
        typer.Option("--save-images", help="keep the adversarial images, in adversarial.npz, and judge them again"),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished attack at --out")] = False,
    overwrite: options.Overwrite = False,
    no_figures: options.NoFigures = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT-attack")] = None,
) -> None:
    """Attack with many methods and find the lowest robust accuracy: right when clean and under every attack."""
    from gradscope.attacks.battery import BATTERY
    from gradscope.config import Balls, Budget
    from gradscope.report.printed import attack_lines
    from gradscope.study.attacks import Battery, run_attacks

    budget = options.given(
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
        attacks=tuple(BATTERY if attacks == "all" else options.known_names(attacks, BATTERY, "--attacks")),
        balls=Balls.parse(options.given(norm=norm, epsilon=epsilon) | radii),
        budget=Budget.parse(budget),
        samples=samples,
        batch_size=batch_size,
        cascade=cascade,
        surrogates=tuple(surrogate or ()),
        save_images=save_images,
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
    results = run_attacks(checkpoints, battery, foreign, options.results_folder(out, checkpoints, "-attack"))
    if options.is_first_process():
        print(attack_lines(results))
        print(results)


def transfer(
    checkpoints: options.Checkpoints,
    attack: options.OneAttack = "pgd",
    norm: options.Norm = "l2",
    epsilon: options.Epsilon = None,
    step_size: options.StepSize = None,
    steps: options.Steps = None,
    loss: options.Loss = None,
    start: options.Start = None,
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
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished transfer at --out")] = False,
    overwrite: options.Overwrite = False,
    no_figures: options.NoFigures = False,
    out: Annotated[Path | None, typer.Option(help="directory of results; reports/FIRST-CKPT-transfer")] = None,
) -> None:
    """Judge the adversarial examples made on each checkpoint on every other, and on itself."""
    from gradscope.config import attack_settings
    from gradscope.report.printed import transfer_lines
    from gradscope.study.transfer import TransferMatrix, run_transfer

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
    matrix = TransferMatrix(
        attack=attack,
        settings=attack_settings(attack, changes),
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
    results = run_transfer(checkpoints, matrix, foreign, options.results_folder(out, checkpoints, "-transfer"))
    if options.is_first_process():
        print(transfer_lines(results))
        print(results)
