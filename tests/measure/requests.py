"""Requests from flat keywords, as a notebook gives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradscope.measure.options import COMMANDS, Request
from gradscope.measure.options.common import Circumstances, ForeignOptions
from gradscope.measure.runner import run
from gradscope.options import DataOptions


def request_of(command: str, models: Sequence[str], **given: Any) -> Request:
    """A request of ``command`` without figures; each keyword goes to the class that has a field of its name."""
    left = {"no_figures": True, "device": "cpu", **given}
    shared = {
        part: kind.parse({name: left.pop(name) for name in kind.model_fields if name in left})
        for part, kind in (("data", DataOptions), ("foreign", ForeignOptions), ("where", Circumstances))
    }
    return Request(options=COMMANDS[command].parse(left), models=tuple(models), **shared)


def measured(command: str, models: Sequence[str], out: Path, **given: Any) -> Path:
    """Measure what the keywords ask for; see :func:`request_of`."""
    return run(request_of(command, models, **given), out)
