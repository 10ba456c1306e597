"""The state of a training run, in memory and on disk: written every few seconds, read to resume."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gradscope.config import Training
from gradscope.data.image_set import ImageSet
from gradscope.errors import CannotResumeError, GradscopeError, first_of
from gradscope.models.architectures import ModelSpec
from gradscope.models.checkpoint import (
    Checkpoint,
    load,
    load_strictly,
    load_weights_only,
    require_checksums,
    require_each,
    require_fit,
    require_kinds,
    save,
    save_tensors,
)
from gradscope.results.provenance import provenance
from gradscope.results.schemas import HISTORY
from gradscope.results.tables import write_table
from gradscope.training.history import kept_epoch
from gradscope.training.request import epochs_folder, require_begun, state_path

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricOptimizer

#: Seconds between two writes of the state; in between it is held in memory.
STORE_EVERY = 10.0
#: The types of the parts of a state.
_KINDS = {
    "config": dict,
    "fingerprint": str,
    "network": dict,
    "optimizer": dict,
    "best": dict,
    "epochs_done": int,
    "history": list,
}


def require_unfinished(out: Path, training: Training, images: ImageSet, *, keep_epochs: bool) -> None:
    """Raise :class:`CannotResumeError` if there is nothing to resume; a checkpoint says whether its run is complete."""
    if state_path(out).exists():  # also beside a complete checkpoint that this run is replacing or has just written
        return
    require_begun(out)
    written = load(out)
    if not written.is_complete:
        raise CannotResumeError(
            f"resume: {out} holds {written.epochs} of {written.planned_epochs} epochs, but {state_path(out).name}, "
            "which resuming needs, is missing; train it again with `overwrite`"
        )
    wanted = training.model_dump(mode="json")
    if training.precision == "auto":  # the checkpoint holds its resolved value
        wanted["precision"] = written.config.get("precision")
    changed = [*_differences(written.config, wanted)]
    if written.data_fingerprint != images.fingerprint:
        changed.append("the images")
    if keep_epochs and not any(epochs_folder(out).glob("*.pt")):
        changed.append("keep_epochs (there False, here True)")
    if changed:
        raise CannotResumeError(
            f"resume: {out} is complete and belongs to another run; it differs in {first_of(changed)}; `overwrite` "
            "replaces it"
        )
    raise CannotResumeError(f"resume: {out} is complete; there is nothing to do")


def begun_precision(out: Path) -> str | None:
    """Read the precision of the unfinished run of ``out``; None if no state can be read."""
    try:
        return str(load_weights_only(state_path(out), "resume")["config"]["precision"])
    except (GradscopeError, LookupError, TypeError):
        return None


@dataclass
class RunState:
    """The state of one run: current weights and optimiser, best weights, and one row of history per epoch.

    Every process has one; only the first process writes.
    """

    fabric: "Fabric"
    training: Training
    images: ImageSet
    spec: ModelSpec
    network: nn.Module
    optimizer: "_FabricOptimizer"
    out: Path
    keep_epochs: bool
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    unwritten: dict[str, Any] | None = None
    written: float = -inf

    @property
    def epochs_done(self) -> int:
        """The number of epochs done."""
        return len(self.history)

    def begin(self) -> None:
        """Write a state of 0 epochs, and replace the kept epochs of an earlier run by the initial weights.

        An earlier run's checkpoint stays until this run has its own. Because of the state file, resuming does not take
        that checkpoint for this run's.
        """
        if self.fabric.is_global_zero:
            save_tensors(state_path(self.out), self._content())
            for stale in epochs_folder(self.out).glob("*.pt"):
                stale.unlink()
            self._keep_epoch()

    def resume(self) -> None:
        """Load the state file; raises :class:`CannotResumeError` if configuration or data differ, or it is damaged."""
        path = state_path(self.out)
        try:
            state = load_weights_only(path, "resume")
            require_checksums(path, "resume")
            require_kinds(state, _KINDS)
            changed = [*_differences(state["config"], self._config())]
            if state["fingerprint"] != self.images.fingerprint:
                changed.append("the images")
            kept = state.get("keep_epochs", self.keep_epochs)  # older states lack it
            changed += _differences({"keep_epochs": kept}, {"keep_epochs": self.keep_epochs})
            if changed:
                raise CannotResumeError(f"resume: {path} belongs to another run; it differs in {first_of(changed)}")
            require_each("history", state["history"], dict)
            state["history"] = [_with_later_columns(row) for row in state["history"]]
            self._require_whole(state)
            load_strictly(self.network, state["network"], f"resume: {path} does not fit {self.training.architecture}")
            # The groups hold how this device's optimiser computes; the saved ones may come from another device.
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        except CannotResumeError:
            raise
        except GradscopeError as error:
            raise CannotResumeError(str(error)) from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            why = f"{type(error).__name__} {error}".splitlines()[0]
            raise CannotResumeError(f"resume: {path} is damaged: {why}; train again with `overwrite`") from None
        self.history, self.best = state["history"], state["best"]

    def _require_whole(self, state: dict[str, Any]) -> None:
        """Raise an error unless the content of a state is what :meth:`_store` saves for such a run."""
        rows = state["history"]
        if not len(rows) == state["epochs_done"] <= self.training.epochs:
            raise ValueError(f"its history must have {state['epochs_done']} rows, got {len(rows)}")
        if bool(state["optimizer"]["state"]) != bool(rows):
            raise ValueError(f"its optimiser's state must be that of {len(rows)} epochs")
        for row in rows:
            if list(row) != HISTORY.names:
                raise ValueError("its history must have the columns of this version")
            require_each("history", row.values(), int, float, type(None))
        own = self.network.state_dict()
        for part in ("network", "best"):
            require_each(part, state[part].values(), Tensor)
            require_fit(own, state[part], f"resume: {part} does not fit {self.training.architecture}")
        parameters = list(self.network.parameters())
        for index, values in state["optimizer"]["state"].items():
            shapes = {tuple(value.shape) for name, value in values.items() if name != "step"}
            if shapes != {tuple(parameters[index].shape)}:
                raise ValueError(f"its optimiser's state must fit parameter {index}")

    def add(self, row: dict[str, Any]) -> None:
        """Add a finished epoch to the history, and keep its weights if it is the selected epoch."""
        self.history.append(row)
        if kept_epoch(self.history, self.training.selection) == self.epochs_done:
            self.best = _copied(self.network.state_dict())
        if self.fabric.is_global_zero:
            self._keep_epoch()
            self._store()

    def _keep_epoch(self) -> None:
        if self.keep_epochs:
            path = epochs_folder(self.out) / f"{self.epochs_done:04}.pt"
            save(path, self._checkpoint(self.network.state_dict(), self.history, self.epochs_done))

    def _content(self) -> dict[str, Any]:
        """Collect everything that resuming needs."""
        network = self.network.state_dict()
        return {
            "config": self._config(),
            "fingerprint": self.images.fingerprint,
            "keep_epochs": self.keep_epochs,
            "network": network,
            "optimizer": self.optimizer.state_dict(),
            "best": self.best or network,
            "epochs_done": self.epochs_done,
            "history": self.history.copy(),
        }

    def _store(self) -> None:
        """Keep the state in memory, and write it if the last write was more than :data:`STORE_EVERY` seconds ago."""
        state = self._content()
        due = time.monotonic() - self.written > STORE_EVERY
        self.unwritten = state if due else _copied(state)
        if due:
            self.write()

    def write(self) -> None:
        """Write the state after the last epoch, then the best checkpoint and the history, unless already written.

        The state is written first, and :meth:`complete` removes it last, so that a run killed in between can resume.
        """
        state, self.unwritten = self.unwritten, None
        if state is None:
            return
        save_tensors(state_path(self.out), state)
        self._publish(state["best"], state["history"])
        self.written = time.monotonic()

    def complete(self) -> None:
        """Write checkpoint and history of a run whose epochs are all done, and remove the state."""
        if self.fabric.is_global_zero:
            self._publish(self.best or self.network.state_dict(), self.history)
            state_path(self.out).unlink(missing_ok=True)

    def _publish(self, weights: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
        """Write the checkpoint and, beside it, its history."""
        kept = kept_epoch(history, self.training.selection)
        save(self.out, self._checkpoint(weights, history, kept))
        write_table(self.out.with_suffix(".history.csv"), HISTORY, history)

    def _checkpoint(self, weights: dict[str, Tensor], history: list[dict[str, Any]], kept: int) -> Checkpoint:
        return Checkpoint(
            spec=self.spec,
            state_dict=weights,
            mode=self.training.mode,
            dataset=self.images.name,
            classes=self.images.classes,
            data_fingerprint=self.images.fingerprint,
            config=self._config(),
            history=history,
            provenance=provenance(str(self.fabric.device)) | {"processes": self.fabric.world_size},
            kept_epoch=kept,
        )

    def _config(self) -> dict[str, Any]:
        return self.training.model_dump(mode="json")


def _with_later_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Add the columns that an older version's row of history lacks, empty."""
    later = {column.name for column in HISTORY.columns if column.later} - row.keys()
    return {name: None if name in later else row[name] for name in HISTORY.names} if later else row


def _differences(begun: Any, wanted: Any, place: str = "") -> Iterator[str]:
    """Yield each difference of two configurations with both values: ``seed (there 0, here 1)``."""
    if isinstance(wanted, list) and isinstance(begun, list) and len(wanted) == len(begun):
        begun, wanted = (dict(enumerate(values)) for values in (begun, wanted))
    if isinstance(wanted, dict) and isinstance(begun, dict):
        for key in wanted | begun:
            yield from _differences(begun.get(key), wanted.get(key), f"{place}.{key}" if place else str(key))
    elif begun != wanted:
        yield f"{place} (there {begun}, here {wanted})"


def _copied(state: Any) -> Any:
    """Copy ``state`` with its tensors."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return type(state)((name, _copied(value)) for name, value in state.items())
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state
