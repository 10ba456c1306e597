"""How options are declared: once, without torch, as the fields of a class; and those that several commands share.

The command's signature, the recipe's keys, the keyword arguments, the manifest's record and the names of a study's
stages come from these classes: a new option is a new field. ``gradscope COMMAND --help`` shows the fields' texts.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo

from gradscope.config import ImageSize
from gradscope.validation import Config, FilePath

#: Groups of options in ``--help``, in order.
GROUPS = "measuring", "training", "attack", "image", "model", "data", "running"
MEASURING, TRAINING, ATTACK, IMAGES, MODEL, DATA, RUNNING = GROUPS


def split(value: object) -> object:
    """Split ``"a,b"`` as on the command line; a list stays, one number alone becomes one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return (value,) if isinstance(value, int | float) else value


def _split_names(value: object) -> object:
    parts = split(value)
    return tuple(part for part in parts if part != "") if isinstance(parts, tuple) else parts


def several(value: object) -> object:
    """Take one text or path alone as several."""
    return (value,) if isinstance(value, str | Path) else value


#: Names as a list, or between commas.
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
    """Declare an option: its default (``...`` where it must be given), its help text, its group, pydantic's bounds.

    ``usual``: the default in words, where it depends on something. ``names``: "module:TABLE" whose names complete it on
    the command line. ``flag``: what it is called there, where that is not the field's name. ``repeatable``: it is given
    there once for each value, not with commas. ``both_ways``: a switch that can be turned on and off there. ``typed``:
    whether it is there at all.
    """
    extra: dict[str, Any] = {"group": group, "names": names, "metavar": metavar, "flag": flag, "usual": usual}
    extra |= {"repeatable": repeatable, "both_ways": both_ways, "typed": typed}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


def default_of(kind: type[BaseModel], name: str) -> str:
    """The default of a field of ``kind``, for the ``usual`` of an option that is laid over it."""
    return str(kind.model_fields[name].default)


def explained(field: FieldInfo) -> str:
    """An option's help text, and its default where that is said in words."""
    usual = field.json_schema_extra.get("usual") if isinstance(field.json_schema_extra, dict) else None
    return f"{field.description}" + (f"; default: {usual}" if usual else "")


class DeviceOptions(Config):
    """Where work runs; decides none of its numbers."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto is a GPU with CUDA where there is one", RUNNING)


class RunOptions(DeviceOptions):
    """Where work runs, and what becomes of what lies there."""

    devices: int = option(1, "processes that share the work, one on each device", RUNNING, ge=1)
    resume: bool = option(False, "continue the unfinished run at --out", RUNNING)
    overwrite: bool = option(False, "replace what --out holds", RUNNING)


class DataOptions(Config):
    """Which images."""

    dataset: str | None = option(
        None,
        "data set to examine on, see `gradscope list datasets`",
        DATA,
        usual="the checkpoint's own",
        names="gradscope.data.names:DATASETS",
    )
    data_root: FilePath | None = option(None, "folder or file that holds the data set", DATA)
    image_size: ImageSize | None = option(
        None, "resize the images of 'folder' and 'imagenet100' to this side, in pixels", DATA
    )
    download: bool = option(False, "allow downloading the data set", DATA)

    def given(self) -> dict[str, Any]:
        """What is given of the data set."""
        return {key: value for key, value in self.model_dump(exclude={"download"}).items() if value is not None}
