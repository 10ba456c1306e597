"""The one door to torchvision.

PyPI's torchvision wheel is compiled against CUDA. Beside a CPU-only torch its operator library does not load, and
``import torchvision`` fails because it registers a fake kernel for ``torchvision::nms``, an operator that is not there.
Nothing gradscope uses needs the compiled operators, so where the library does not load, declaring the two schemas
that torchvision refers to at import is enough. Where it loads, or torchvision is imported already, nothing is touched.

Use torchvision through this module (``vision.torchvision``), and import this module before whatever imports torchvision
itself (torchattacks). The first use loads it: it loads torch's compiler, which takes as long as torch.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import torchvision

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")


if "torchvision" not in sys.modules and not _compiled_operators_load():
    # Kept at module level: the schemas live as long as this object does. A fragment, for others may declare some too.
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, _schema.partition("(")[0]):
            _declared.define(_schema)


def __getattr__(name: str) -> Any:
    if name != "torchvision":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import torchvision
    import torchvision.datasets
    import torchvision.models
    import torchvision.transforms.v2

    globals()[name] = torchvision
    return torchvision


__all__ = ["torchvision"]
