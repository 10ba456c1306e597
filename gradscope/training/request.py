"""What a training is asked for, checked as far as that goes without torch and without its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradscope.config import Data, Training, apply_setting, merge
from gradscope.data.names import check_data
from gradscope.errors import GradscopeError, lookup
from gradscope.models.names import check_architecture
from gradscope.training.phases import MODES, resolve

#: Side in pixels of the images that a configuration is checked with before there are any.
_SOME_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A training as it is asked for: ``mode`` < ``table`` (a TOML file) < ``settings`` (KEY=VALUE) < ``options``.

    ``data`` says which images; see :func:`gradscope.training.phases.resolve`.
    """

    mode: str
    data: Mapping[str, Any] = field(default_factory=dict)
    paper: bool = False
    table: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[str] = ()
    epochs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    trust_code: bool = False

    @property
    def source(self) -> Data:
        """What ``table`` < ``settings`` < ``data`` say of the images."""
        values = merge({"data": {}}, {"data": self.table.get("data", {})})
        for setting in self.settings:
            if setting.partition("=")[0].partition(".")[0] == "data":
                apply_setting(values, setting)
        if not isinstance(values["data"], Mapping):
            keys = ", ".join(Data.model_fields)
            raise GradscopeError(f"data must be a table with {keys}, got {values['data']!r}", "data")
        parsed = Data.parse(merge(values["data"], self.data))
        # Kept in the checkpoint, so it must hold in any working directory.
        return parsed.model_copy(update={"data_root": parsed.data_root and parsed.data_root.resolve()})

    def resolved(self, source: Data, image_size: int) -> Training:
        """The whole configuration for images of a size, on which the presets depend."""
        if "phases" not in self.table:
            lookup(MODES, self.mode, "mode")
        training = resolve(
            self.mode,
            source,
            image_size,
            paper=self.paper,
            table=self.table,
            settings=self.settings,
            epochs=self.epochs,
            options=merge(self.options, {"data": source.model_dump()}),
        )
        check_architecture(training.architecture, trust_code=self.trust_code, argument="architecture")
        return training

    def check(self, out: Path | None, *, resume: bool, overwrite: bool) -> None:
        """Raise :class:`GradscopeError` for what is wrong with it, or with ``out``, as far as that can be seen."""
        source = self.source
        check_data(source)
        self.resolved(source, source.image_size or _SOME_SIZE)
        if out is not None:
            require_free(out, resume=resume, overwrite=overwrite)


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run lies."""
    return out.with_name(out.name + ".resume")


def epochs_folder(out: Path) -> Path:
    """Where the weights after each epoch lie, if they are kept."""
    return out.with_suffix(".epochs")


def require_free(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise :class:`GradscopeError` where ``out`` is a directory, or a file that may not go."""
    if out.is_dir():
        raise GradscopeError(f"out must be a file, got {out}, a directory")
    if out.exists() and not (resume or overwrite):
        unfinished = "; it is unfinished: `resume` continues it" if state_path(out).exists() else ""
        raise GradscopeError(f"out must be another name: {out} exists; pass `overwrite` to replace it{unfinished}")
