"""``gradscope train``."""

from pathlib import Path
from typing import Annotated

import typer

from gradscope.cli import options
from gradscope.cli.declared import completing


def train(
    mode: Annotated[
        str,
        typer.Option(
            help="sl, rl, sl-adv, rl-adv, sl-rl, rl-sl, or any label with --config phases",
            autocompletion=completing("gradscope.training.phases:MODES"),
        ),
    ],
    dataset: Annotated[str | None, typer.Option(help="see `gradscope list datasets`; digits where not given")] = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    download: options.Download = False,
    arch: Annotated[
        str | None,
        typer.Option(
            help="see `gradscope list architectures`, or your own package.module:factory(...); sized for the data"
        ),
    ] = None,
    train_samples: Annotated[
        int | None, typer.Option(min=2, help="training images to use, every class in its share; all")
    ] = None,
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
    device: options.Device = "auto",
    devices: Annotated[int, typer.Option(min=1, help="processes, one a device, that share each batch")] = 1,
    precision: Annotated[str | None, typer.Option(help="32, or bf16 autocast (training only)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the unfinished run at --out")] = False,
    keep_epochs: Annotated[
        bool, typer.Option("--keep-epochs", help="keep the weights after every epoch, in NAME.epochs")
    ] = False,
    trust_code: options.TrustCode = False,
    overwrite: options.Overwrite = False,
    out: Annotated[Path | None, typer.Option(help="checkpoint file; checkpoints/DATA-ARCH-MODE-sSEED.pt")] = None,
) -> None:
    """Train a classifier: supervised, by policy gradient, adversarially, or in phases of these."""
    from gradscope.config import read_toml
    from gradscope.models.names import short_name
    from gradscope.training.request import TrainingRequest

    request = TrainingRequest(
        mode=mode,
        data=options.given(dataset=dataset, data_root=data_root, image_size=image_size),
        paper=paper,
        table={} if config is None else read_toml(config),
        settings=settings or (),
        epochs=epochs,
        options=options.given(
            architecture=arch, batch_size=batch_size, seed=seed, precision=precision, train_samples=train_samples
        ),
        trust_code=trust_code,
    )
    request.check(out, resume=resume, overwrite=overwrite)
    from gradscope.distributed.processes import Hardware
    from gradscope.training.runs import configure_training, run_training

    training, splits = configure_training(request, download=download)
    name = f"{splits.train.name}-{short_name(training.architecture)}-{training.mode}-s{training.seed}.pt"
    hardware = Hardware(device, devices)
    trained = run_training(
        training,
        splits,
        out or Path("checkpoints") / name,
        hardware,
        resume=resume,
        overwrite=overwrite,
        keep_epochs=keep_epochs,
        trust_code=trust_code,
    )
    low, high = trained.test_interval
    if hardware.is_first:
        print(
            f"{trained.path}  clean accuracy {100 * trained.test_accuracy:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}] on {trained.test_images} test images"
        )
