"""Options that several commands have, and how what they were given is read."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradscope.errors import GradscopeError, lookup

if TYPE_CHECKING:
    from gradscope.models.loading import Foreign


def completing(source: str, table: str) -> Any:
    """Completion by the names of a table; the module that holds it is imported when the shell asks."""

    def names(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",")
        return [f"{done}{comma}{name}" for name in getattr(import_module(source), table) if name.startswith(last)]

    return names


CHECKPOINTS = "our .pt files, or foreign models: torchvision:NAME, timm:NAME, package.module:factory"

Checkpoints = Annotated[list[str], typer.Argument(metavar="CKPT...", help=CHECKPOINTS, show_default=False)]
DataRoot = Annotated[Path | None, typer.Option(help="where the data set's files are")]
ImageSize = Annotated[int | None, typer.Option(help="side in pixels to which 'folder' and 'imagenet100' are resized")]
Download = Annotated[bool, typer.Option("--download", help="allow downloading the data set")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Devices = Annotated[int, typer.Option(min=1, help="processes, one a device, that share the images; the same results")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what --out holds")]
NoFigures = Annotated[
    bool, typer.Option("--no-figures", help="write tables alone; `gradscope figures` draws them later")
]
OneAttack = Annotated[
    str,
    typer.Option(
        help="pgd (exact), pgd-paper, or another PGD by its loss",
        autocompletion=completing("gradscope.config", "PGD_ATTACKS"),
    ),
]
Norm = Annotated[str, typer.Option(help="l2 or linf")]
Epsilon = Annotated[str | None, typer.Option(help="radius in pixel units, 0.5 or 8/255; 1.0 for l2, 8/255 for linf")]
StepSize = Annotated[
    str | None, typer.Option(help="length of a step, pixel units; 2.5 epsilon / steps, of pgd-paper epsilon / 10")
]
RelativeStepSize = Annotated[str | None, typer.Option(help="the same in multiples of epsilon")]
Steps = Annotated[int | None, typer.Option(help="steps of the attack; 100")]
Loss = Annotated[
    str | None,
    typer.Option(help="what the attack climbs: cross-entropy, log-odds, rescaled-cross-entropy, margin or dlr"),
]
Samples = Annotated[int | None, typer.Option(help="test images, drawn by --seed; 500 or all there are")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="images attacked at once; 128 where the attack averages over them")
]
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


def require_directory(directory: Path) -> None:
    """Raise :class:`GradscopeError` where there is no such directory, before anything is imported to read it."""
    if not directory.is_dir():
        raise GradscopeError(f"DIR must be a directory of results, got {directory}, which is no directory")


def is_first_process() -> bool:
    """Whether this process is the one that speaks for all that ``torchrun`` has started; asked without torch."""
    return os.environ.get("RANK", "0") == "0"


def given(**options: Any) -> dict[str, Any]:
    """The options that the command line gave."""
    return {name: value for name, value in options.items() if value is not None}


def known_names(text: str, known: dict[str, Any], argument: str) -> list[str]:
    """The names between commas, each once; all must be known, and there must be one."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        lookup(known, name, argument)
    if not names:
        raise GradscopeError(f"{argument}: at least one name is needed, known: {', '.join(known)}")
    return names


def results_folder(out: Path | None, checkpoints: list[str], suffix: str = "") -> Path:
    """``--out``, or else a directory of ``reports`` named after the first checkpoint."""
    return out or Path("reports") / f"{Path(checkpoints[0].rpartition(':')[2]).stem}{suffix}"


def read_foreign(
    weights: list[Path] | None, mean: str | None, std: str | None, trust_code: bool, ignore_class_names: bool
) -> "Foreign":
    """What the options say about foreign models."""
    from gradscope.models.loading import Foreign

    normalisation = _numbers(mean, "--mean"), _numbers(std, "--std")
    return Foreign(tuple(weights or ()), *normalisation, trust_code, ignore_class_names)


def _numbers(text: str | None, argument: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise GradscopeError(f"{argument}: numbers with commas between are allowed, got {text!r}") from None
