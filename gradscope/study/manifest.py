"""Write the manifest of a study: the resolved recipe, the plan, and the state of every stage."""

import json
from pathlib import Path
from typing import Any

from gradscope.distributed.processes import device_name, resolve_device
from gradscope.measure.options.common import plain
from gradscope.reading import parse_json, read_bytes
from gradscope.results.files import write_json
from gradscope.results.manifest import MANIFEST
from gradscope.results.provenance import provenance
from gradscope.study.plan import Plan
from gradscope.study.runner import Ended
from gradscope.study.state import Places

#: Keys that do not count when two manifests are compared.
_CIRCUMSTANCES = ("engine", "provenance")


def write_manifest(plan: Plan, places: Places, ended: Ended, *, engine: str, device: str) -> None:
    """Write the plan and the state of its stages; ``complete`` means that nothing is missing.

    The manifest omits stages that read it. If the file already has the same content, it is not rewritten, so that the
    stages that read it stay valid.
    """
    stages = []
    for stage in plan.stages:
        if stage.reads_manifest:
            continue
        record = ended.records.get(stage.label)
        facts: dict[str, Any] = {"state": "blocked" if stage.label in ended.blocked else "to do"}
        if record is not None:
            facts = record.model_dump(
                mode="json", include={"state", "seconds", "when", "where", "files", "log", "error"}
            )
        stages.append(
            {
                "label": stage.label,
                "kind": stage.kind,
                "name": stage.name,
                "needs": list(stage.needs),
                "place": stage.place,
                "settings": stage.settings,
                "blocked_by": ended.blocked.get(stage.label, []),
                **facts,
            }
        )
    done = all(stage["state"] == "done" for stage in stages)
    recipe = plan.study.recipe.model_dump(mode="json", by_alias=True)
    for data in recipe["data"].values():
        data.pop("data_root")
    content = {
        "kind": "study",
        "study": plan.study.name,
        "complete": done and not plan.absent,
        "recipe": recipe,
        "data": {name: plain(vars(facts) | {"source": facts.source.dataset}) for name, facts in plan.images.items()},
        "absent": {"data": dict(plan.absent), "stages": list(plan.left_out)},
        "models": [
            {
                "label": model.label,
                "name": model.name,
                "data": model.data,
                "seed": model.seed,
                "of": model.of,
                "factor": model.factor,
            }
            for model in plan.study.models
        ],
        "stages": stages,
        "seconds": sum(stage.get("seconds") or 0.0 for stage in stages),
        "engine": engine,
        "provenance": provenance(device_name(resolve_device(device))),
    }
    path = places.results / MANIFEST
    if _decisive(_read(path)) != _decisive(json.loads(json.dumps(content))):
        write_json(path, content)


def _read(path: Path) -> dict[str, Any]:
    """Read the manifest in ``path``; {} if it is missing or damaged."""
    try:
        content = parse_json(read_bytes(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _decisive(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in _CIRCUMSTANCES}
