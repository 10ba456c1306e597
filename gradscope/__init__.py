"""See an image classifier as a gradient-based attacker does, and tell whether its robustness is real.

>>> import gradscope as gs
>>> report = gs.audit(model, x, y, norm="linf", epsilon="8/255")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradscope.api.measurements import attack, audit, judge, landscape, report, spectrum, trace, transfer
    from gradscope.api.models import load
    from gradscope.api.training import train
    from gradscope.attacks.threat import ThreatModel
    from gradscope.config import PGD, Adversary, Budget, Phase, Training
    from gradscope.data.image_set import ImageSet
    from gradscope.errors import GradscopeError
    from gradscope.measure.result import read

__all__ = [
    "PGD",
    "Adversary",
    "Budget",
    "GradscopeError",
    "ImageSet",
    "Phase",
    "ThreatModel",
    "Training",
    "attack",
    "audit",
    "judge",
    "landscape",
    "load",
    "read",
    "report",
    "spectrum",
    "trace",
    "train",
    "transfer",
]

#: Where each public name lives; it is imported when it is first asked for, so that `import gradscope` is fast.
_HOMES = {
    **dict.fromkeys(
        ("attack", "audit", "judge", "landscape", "report", "spectrum", "trace", "transfer"), "api.measurements"
    ),
    **dict.fromkeys(("PGD", "Adversary", "Budget", "Phase", "Training"), "config"),
    "GradscopeError": "errors",
    "ImageSet": "data.image_set",
    "load": "api.models",
    "ThreatModel": "attacks.threat",
    "read": "measure.result",
    "train": "api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        hint = "; did you mean 'trace'?" if name == "analyze" else ""  # the command's name
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
