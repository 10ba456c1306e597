"""What a training is asked for, checked as far as that goes without torch and without its images."""

from pathlib import Path
from typing import Any

from pydantic import Field

from gradscope.config import Data, Training, apply_setting, merge
from gradscope.data.names import check_data
from gradscope.data.places import in_any_directory
from gradscope.errors import CannotResumeError, GradscopeError
from gradscope.models.names import check_architecture
from gradscope.training.options import TrainingData, TrainOptions
from gradscope.validation import Config

#: Side in pixels of the images that a configuration is checked with before there are any.
_SOME_SIZE = 32


class TrainingRequest(Config):
    """A training that is asked for: with which options, on which images; ``table`` is what a TOML file says."""

    options: TrainOptions
    data: TrainingData = TrainingData()
    table: dict[str, Any] = Field(default_factory=dict)

    @property
    def source(self) -> Data:
        """What ``table`` < the settings < ``data`` say of the images."""
        values = merge({"data": {}}, {"data": self.table.get("data", {})})
        for setting in self.options.set:
            if setting.partition("=")[0].partition(".")[0] == "data":
                apply_setting(values, setting)
        if not isinstance(values["data"], dict):
            keys = ", ".join(Data.model_fields)
            raise GradscopeError(f"data must be a table with {keys}, got {values['data']!r}", "data")
        # Kept in the checkpoint, so it must hold in any working directory.
        return in_any_directory(Data.parse(merge(values["data"], self.data.given())))

    def resolved(self, source: Data, image_size: int) -> Training:
        """The whole configuration for images of a size, on which the presets depend."""
        training = self.options.resolved(source, image_size, self.table)
        check_architecture(training.architecture, trust_code=self.options.trust_code)
        return training

    def check(self, out: Path | None, *, resume: bool, overwrite: bool) -> None:
        """Raise :class:`GradscopeError` for what is wrong with it, or with ``out``, as far as that can be seen."""
        source = self.source
        check_data(source, download=self.data.download)
        self.resolved(source, source.image_size or _SOME_SIZE)
        if out is not None:
            require_free(out, resume=resume, overwrite=overwrite)


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run lies."""
    return out.with_name(out.name + ".resume")


def epochs_folder(out: Path) -> Path:
    """Where the weights after each epoch lie, if they are kept."""
    return out.with_suffix(".epochs")


def require_begun(out: Path) -> None:
    """Raise :class:`CannotResumeError` where no run has written to ``out``."""
    if not (state_path(out).exists() or out.exists()):
        raise CannotResumeError(f"resume: there is no unfinished run at {out}; train it without `resume`")


def require_free(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise :class:`GradscopeError` where ``out`` is a directory, a file that may not go, or no run to resume."""
    if out.is_dir():
        raise GradscopeError(f"out must be a file, got {out}, a directory")
    if resume:
        require_begun(out)
    if out.exists() and not (resume or overwrite):
        unfinished = "; it is unfinished: `resume` continues it" if state_path(out).exists() else ""
        raise GradscopeError(f"out must be another name: {out} exists; pass `overwrite` to replace it{unfinished}")
