"""What several commands have beside the options that measurements declare."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from gradscope.errors import GradscopeError

Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CKPT...",
        help="our .pt files, or foreign models: torchvision:NAME, timm:NAME, package.module:factory",
        show_default=False,
    ),
]
DataRoot = Annotated[Path | None, typer.Option(help="where the data set's files are")]
ImageSize = Annotated[int | None, typer.Option(help="side in pixels to which 'folder' and 'imagenet100' are resized")]
Download = Annotated[bool, typer.Option("--download", help="allow downloading the data set")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what --out holds")]
NoFigures = Annotated[
    bool, typer.Option("--no-figures", help="write tables alone; `gradscope figures` draws them later")
]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="run the code of package.module:factory")]


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
