"""Turn errors of a user's own code into one line; errors of gradscope itself keep their traceback."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.distributed.units import is_out_of_memory
from gradscope.errors import GradscopeError
from gradscope.models.inspection import copied, one_line

#: Torch's global settings that a model's code may change: how to read and set each.
_SETTINGS: dict[str, tuple[Callable[[], object], Callable[[Any], object]]] = {
    "default type": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, torch.set_default_device),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "deterministic mode": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
}


@contextmanager
def explained_failures(label_of: Callable[[object], str | None], argument: str = "model") -> Iterator[None]:
    """Turn an error from a model's code into a :class:`GradscopeError` that names the model and the failed call.

    ``label_of`` returns the label of a measured model, or of the reference that loads it, and None for any other
    object; the message begins with ``argument``. Interrupts, out-of-memory errors and errors outside of a model pass
    through. If a model changed torch's settings and an error outside of a model follows, the message says so. The
    settings are restored in any case.
    """
    before = {name: read() for name, (read, _) in _SETTINGS.items()}
    changed: dict[str, object] = {}
    try:
        try:
            yield
        finally:
            changed = {name: now for name, (read, _) in _SETTINGS.items() if (now := read()) != before[name]}
            for name in changed:
                _SETTINGS[name][1](before[name])
    except (GradscopeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Python wraps a StopIteration that passes through a generator; the original is its cause.
        error = error.__cause__ if isinstance(error.__cause__, StopIteration) else error
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        label, call = _label(frames, label_of), _failed_call(frames)
        if call is None and changed:
            name, now = next(iter(changed.items()))
            message = f"{argument} must leave torch's {name} unchanged, got one that sets it to {now}"
            raise GradscopeError(message) from error
        full = isinstance(error, RuntimeError) and is_out_of_memory(error)
        if label is None or call is None or full or _is_signal(error, frames):
            raise
        raise GradscopeError(f"{argument}: {label} failed in its {call}: {one_line(error)}") from error


@contextmanager
def in_one_line(said: str, *, halved: bool = False) -> Iterator[None]:
    """Turn any error of a user's code into a :class:`GradscopeError`: ``said``, the error and its place.

    Interrupts, the exit on SIGTERM and :class:`GradscopeError` pass through. With ``halved``, so do out-of-memory
    errors, because the caller then halves the work.
    """
    try:
        yield
    except (GradscopeError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit, too
        full = isinstance(error, RuntimeError) and is_out_of_memory(error)
        if (full and halved) or _is_signal(error, [frame for frame, _ in walk_tb(error.__traceback__)]):
            raise
        raise GradscopeError(f"{said} {one_line(error)}{_where(error)}") from error


def _where(error: BaseException) -> str:
    """Name the file and line of the innermost frame outside of torch, the standard library and gradscope."""
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("gradscope", "torch") and package not in sys.stdlib_module_names:
            place = f" ({Path(frame.f_code.co_filename).name}:{line})"
    return place


def _label(frames: Sequence[FrameType], label_of: Callable[[object], str | None]) -> str | None:
    """Find the label of the model in the innermost of ``frames`` that holds one."""
    values = (value for frame in reversed(frames) for value in frame.f_locals.values())
    return next((label for value in values if (label := label_of(value)) is not None), None)


def _failed_call(frames: Sequence[FrameType]) -> str | None:
    """Name the pass or method of a model in the outermost of ``frames`` that runs one; None if there is none."""
    for frame in frames:
        name, module = frame.f_code.co_name, frame.f_locals.get("self")
        if name == "_engine_run_backward":
            return "backward pass"
        if frame.f_code is copied.__code__:
            return "copying"
        if isinstance(module, nn.Module) and name in ("_wrapped_call_impl", "__call__", "forward"):
            inputs = [value for key, value in frame.f_locals.items() if key != "self"]
            values = [part for value in inputs for part in (value if isinstance(value, tuple) else (value,))]
            sizes = [len(value) for value in values if isinstance(value, Tensor) and value.dim()]
            return f"forward pass on a batch of {sizes[0]}" if sizes else "forward pass"
        if isinstance(module, nn.Module) and not type(module).__module__.startswith("gradscope."):
            return f"method {name}"
    return None


def _is_signal(error: BaseException, frames: Sequence[FrameType]) -> bool:
    """Whether gradscope's signal handler raised ``error`` while a model was running."""
    return isinstance(error, SystemExit) and frames[-1].f_globals.get("__name__", "").startswith("gradscope.")
