"""A request for a training, checked as far as possible without torch and without its images."""

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

#: The side in pixels assumed when a configuration is checked before its images are loaded.
_SOME_SIZE = 32


class TrainingRequest(Config):
    """A request for a training: its options, its images, and ``table``, the content of a TOML file."""

    options: TrainOptions
    data: TrainingData = TrainingData()
    table: dict[str, Any] = Field(default_factory=dict)

    @property
    def source(self) -> Data:
        """The images to train on: ``table`` < the settings < ``data``."""
        values = merge({"data": {}}, {"data": self.table.get("data", {})})
        for setting in self.options.set:
            if setting.partition("=")[0].partition(".")[0] == "data":
                apply_setting(values, setting)
        if not isinstance(values["data"], dict):
            keys = ", ".join(Data.model_fields)
            raise GradscopeError(f"data must be a table with {keys}, got {values['data']!r}", "data")
        # Saved in the checkpoint, so it must be valid in any working directory.
        return in_any_directory(Data.parse(merge(values["data"], self.data.given())))

    def resolved(self, source: Data, image_size: int) -> Training:
        """Resolve the configuration for images of a size, on which the presets depend."""
        training = self.options.resolved(source, image_size, self.table)
        check_architecture(training.architecture, trust_code=self.options.trust_code)
        return training

    def check(self, out: Path | None, *, resume: bool, overwrite: bool) -> None:
        """Raise :class:`GradscopeError` for mistakes in the request or ``out`` that can be found before loading."""
        source = self.source
        check_data(source, download=self.data.download)
        self.resolved(source, source.image_size or _SOME_SIZE)
        if out is not None:
            require_free(out, resume=resume, overwrite=overwrite)


def state_path(out: Path) -> Path:
    """Return the path of the state of an unfinished run."""
    return out.with_name(out.name + ".resume")


def epochs_folder(out: Path) -> Path:
    """Return the folder of the weights after each epoch, if they are kept."""
    return out.with_suffix(".epochs")


def require_begun(out: Path) -> None:
    """Raise :class:`CannotResumeError` if no run has written to ``out``."""
    if not (state_path(out).exists() or out.exists()):
        raise CannotResumeError(f"resume: there is no unfinished run at {out}; train it without `resume`")


def require_free(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise :class:`GradscopeError` if ``out`` is a directory, may not be replaced, or has no run to resume."""
    if out.is_dir():
        raise GradscopeError(f"out must be a file, got the directory {out}")
    if resume:
        require_begun(out)
    if out.exists() and not (resume or overwrite):
        unfinished = ", or `resume` to continue it" if state_path(out).exists() else ""
        replace = f"pass `overwrite` to replace it{unfinished}"
        raise GradscopeError(f"out must be a new file, got {out}, which exists; {replace}")
