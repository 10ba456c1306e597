"""Import torchvision safely; gradscope uses torchvision only through this module.

PyPI's torchvision wheel is compiled against CUDA. With a CPU-only torch its operator library does not load, and
``import torchvision`` fails because it registers a fake kernel for ``torchvision::nms``, an operator that is missing.
gradscope does not need the compiled operators. If the library does not load, this module declares the two schemas that
torchvision refers to at import. If the library loads, or torchvision is already imported, it changes nothing.

Write ``vision.torchvision``, and import this module before any package that imports torchvision itself (torchattacks).
The first use imports torchvision, which loads torch's compiler and takes as long as importing torch.
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
    # At module level, because the schemas live as long as this object. A fragment, because others may declare some too.
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
