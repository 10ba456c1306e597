"""Errors out of a user's own model, told in one line; those of gradscope itself keep their traceback."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType

from torch import Tensor

from gradscope.distributed.units import is_out_of_memory
from gradscope.errors import GradscopeError
from gradscope.models.inspection import one_line


@contextmanager
def explained_failures(label_of: Callable[[object], str | None]) -> Iterator[None]:
    """Turn an error from a model's forward or backward pass into a :class:`GradscopeError` that names model and pass.

    ``label_of`` gives the label of a model that is measured, and None for anything else. An interrupt, a full memory
    and whatever is raised outside of a model pass through.
    """
    try:
        yield
    except (GradscopeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        label, call = _label(frames, label_of), _failed_pass(frames)
        full = isinstance(error, RuntimeError) and is_out_of_memory(error)
        if label is None or call is None or full or _is_signal(error, frames):
            raise
        raise GradscopeError(f"model: {label} failed in its {call}: {one_line(error)}") from error


def _label(frames: Sequence[FrameType], label_of: Callable[[object], str | None]) -> str | None:
    """The label of the model that the innermost of ``frames`` works with."""
    values = (value for frame in reversed(frames) for value in frame.f_locals.values())
    return next((label for value in values if (label := label_of(value)) is not None), None)


def _failed_pass(frames: Sequence[FrameType]) -> str | None:
    """Which pass the outermost of torch's functions that run a model was at, or None."""
    for frame in frames:
        if frame.f_code.co_name == "_engine_run_backward":
            return "backward pass"
        if frame.f_code.co_name == "_wrapped_call_impl":  # nn.Module.__call__
            sizes = [len(value) for value in frame.f_locals["args"] if isinstance(value, Tensor) and value.dim()]
            return f"forward pass on a batch of {sizes[0]}" if sizes else "forward pass"
    return None


def _is_signal(error: BaseException, frames: Sequence[FrameType]) -> bool:
    """Whether gradscope's handler of a signal raised ``error`` while a model was running."""
    return isinstance(error, SystemExit) and frames[-1].f_globals.get("__name__", "").startswith("gradscope.")
