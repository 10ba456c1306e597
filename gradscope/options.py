"""Declaration of options as fields of classes, without torch, and the options that several commands share.

Each option is declared once. The command's flags, the recipe's keys, the keyword arguments, the manifest's record and
the names of a study's stages are made from these classes, so a new option is one new field. The command's ``--help``
shows the fields' texts.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo

from gradscope.config import ImageSize
from gradscope.validation import Config, FilePath

#: Groups of options, in the order of ``--help``.
GROUPS = "measuring", "training", "attack", "image", "model", "data", "running"
MEASURING, TRAINING, ATTACK, IMAGES, MODEL, DATA, RUNNING = GROUPS


def split(value: object) -> object:
    """Split ``"a,b"`` at the commas, as on the command line; a list stays, a single number becomes a tuple.

    >>> split("8/255, 16/255"), split(3)
    (('8/255', '16/255'), (3,))
    """
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return (value,) if isinstance(value, int | float) else value


def _split_names(value: object) -> object:
    parts = split(value)
    return tuple(part for part in parts if part != "") if isinstance(parts, tuple) else parts


def several(value: object) -> object:
    """Wrap a single text or path in a tuple; leave anything else."""
    return (value,) if isinstance(value, str | Path) else value


#: Names, given as a list or as text with commas.
Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]


def option(
    default: Any,
    text: str,
    group: str = MEASURING,
    *,
    usual: str | None = None,
    names: str | None = None,
    metavar: str | None = None,
    flag: str | None = None,
    repeatable: bool = False,
    both_ways: bool = False,
    typed: bool = True,
    **bounds: Any,
) -> Any:
    """Declare an option: its default (``...`` if required), its help text, its group and pydantic's bounds.

    ``usual``: the default in words, for a default that depends on something. ``names``: "module:TABLE"; the shell
    completes the option with the table's names. The rest concern the command line alone. ``flag``: the option's name,
    if it differs from the field's. ``repeatable``: the option is repeated for each value instead of using commas.
    ``both_ways``: the switch can be turned on and off. ``typed``: whether the command line has the option.
    """
    extra: dict[str, Any] = {"group": group, "names": names, "metavar": metavar, "flag": flag, "usual": usual}
    extra |= {"repeatable": repeatable, "both_ways": both_ways, "typed": typed}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


def default_of(kind: type[BaseModel], name: str) -> str:
    """Return the default of a field of ``kind`` as text, for the ``usual`` of an option that overrides the field."""
    return str(kind.model_fields[name].default)


def explained(field: FieldInfo) -> str:
    """Return an option's help text, followed by its default if that is given in words."""
    usual = field.json_schema_extra.get("usual") if isinstance(field.json_schema_extra, dict) else None
    return f"{field.description}" + (f"; default: {usual}" if usual else "")


class DeviceOptions(Config):
    """Where the work runs. These options do not change results."""

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "device to compute on; auto takes a CUDA GPU if there is one", RUNNING
    )


class RunOptions(DeviceOptions):
    """Where the work runs, and what happens to an output directory that already exists."""

    devices: int = option(1, "number of processes that share the work, one per device", RUNNING, ge=1)
    resume: bool = option(False, "continue the unfinished run in --out", RUNNING)
    overwrite: bool = option(False, "replace the results in --out", RUNNING)


class DataOptions(Config):
    """The data set to measure on."""

    dataset: str | None = option(
        None,
        "data set to measure on; `gradscope list datasets` shows the names",
        DATA,
        usual="the checkpoint's own",
        names="gradscope.data.names:DATASETS",
    )
    data_root: FilePath | None = option(None, "folder or file that contains the data set", DATA)
    image_size: ImageSize | None = option(
        None, "side in pixels to which the images of 'folder' and 'imagenet100' are resized", DATA
    )
    download: bool = option(False, "allow gradscope to download the data set", DATA)

    def given(self) -> dict[str, Any]:
        """Return the data set's options that were given, without ``download``."""
        return {key: value for key, value in self.model_dump(exclude={"download"}).items() if value is not None}
