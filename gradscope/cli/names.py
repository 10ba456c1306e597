"""``gradscope list``."""

import textwrap
from enum import StrEnum
from typing import Annotated

import typer


class Listing(StrEnum):
    """The kinds of names that ``gradscope list`` prints."""

    datasets = "datasets"
    architectures = "architectures"
    metrics = "metrics"
    attacks = "attacks"
    objectives = "objectives"
    modes = "modes"


def list_names(
    what: Annotated[
        Listing | None, typer.Argument(metavar="WHAT", help=", ".join(Listing), show_default="all of them")
    ] = None,
) -> None:
    """List the names that the other commands know: data sets, architectures, metrics, attacks and others."""
    if what is not None:
        print(_lines(what))
        return
    print("\n\n".join(f"{kind.capitalize()}:\n{textwrap.indent(_lines(kind), '  ')}" for kind in Listing))


def _lines(what: Listing) -> str:
    return "\n".join(f"{name:18} {meaning}" for name, meaning in _listing(what).items())


def _listing(what: Listing) -> dict[str, str]:
    if what is Listing.datasets:
        from gradscope.data.names import DATASETS

        return {name: source.description for name, source in DATASETS.items()}
    if what is Listing.architectures:
        from gradscope.models.names import ARCHITECTURES

        return {name: architecture.description for name, architecture in ARCHITECTURES.items()}
    if what is Listing.metrics:
        from gradscope.results.metrics import METRICS

        return {name: f"{metric.meaning} [{metric.unit}]" for name, metric in METRICS.items()}
    if what is Listing.modes:
        from gradscope.training.phases import MODES

        return MODES
    if what is Listing.attacks:
        from gradscope.attacks.registry import ATTACKS

        return {
            name: f"{attack.meaning} [{', '.join(['logits', *sorted(attack.needs)])}"
            + (f"; {attack.classes} classes or more]" if attack.classes > 2 else "]")
            for name, attack in ATTACKS.items()
        }
    from gradscope.config import OBJECTIVES

    return dict(OBJECTIVES)
