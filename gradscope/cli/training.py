"""``gradscope train``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.cli.afterwards import say_after_training
from gradscope.cli.declared import filled, panel, parameters, plain_parameter, with_signature
from gradscope.cli.shared import is_first_process, shared_mistakes
from gradscope.config import read_toml
from gradscope.models.names import short_name
from gradscope.options import RUNNING, TRAINING, RunOptions
from gradscope.results.files import require_idle
from gradscope.training.options import TrainingData, TrainOptions
from gradscope.training.request import TrainingRequest

_Table = Annotated[
    Path | None, typer.Option(help="TOML file of settings that replace the preset's", rich_help_panel=panel(TRAINING))
]
_Out = Annotated[
    Path | None,
    typer.Option(
        help="checkpoint to write", show_default="checkpoints/DATA-ARCH-MODE-sSEED.pt", rich_help_panel=panel(RUNNING)
    ),
]


def _train(config: Path | None, out: Path | None, **values: Any) -> None:
    """Train a classifier: supervised, by policy gradient, adversarially, or in phases of these."""
    with shared_mistakes():
        request = TrainingRequest(
            options=TrainOptions.parse(filled(TrainOptions, values)),
            data=TrainingData.parse(filled(TrainingData, values)),
            table={} if config is None else read_toml(config),
        )
        where = RunOptions.parse(filled(RunOptions, values))
        if out is not None and is_first_process():
            require_idle(out)
        request.check(out, resume=where.resume, overwrite=where.overwrite)
    from gradscope.distributed.processes import Hardware
    from gradscope.training.runs import configure_training, run_training

    training, splits = configure_training(request)
    name = f"{splits.train.name}-{short_name(training.architecture)}-{training.mode}-s{training.seed}.pt"
    hardware = Hardware(where.device, where.devices)
    trained = run_training(
        training,
        splits,
        out or Path("checkpoints") / name,
        hardware,
        resume=where.resume,
        overwrite=where.overwrite,
        keep_epochs=request.options.keep_epochs,
        trust_code=request.options.trust_code,
    )
    low, high = trained.test_interval
    if hardware.is_first:
        print(
            f"{trained.path}  clean accuracy {100 * trained.test_accuracy:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}] on {trained.test_images} test images; "
            f"epoch {trained.checkpoint.kept_epoch} of {trained.checkpoint.planned_epochs} was kept",
            flush=True,
        )
        say_after_training(trained.path, ["--trust-code"] if request.options.trust_code else [])


train = with_signature(
    _train,
    [
        *parameters(TrainOptions, TrainingData, RunOptions),
        plain_parameter("config", _Table, None),
        plain_parameter("out", _Out, None),
    ],
)
