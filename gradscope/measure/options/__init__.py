"""The options of every measuring command, one file each, and the request that holds them."""

from typing import Self

from gradscope.measure.options.analyze import AnalyzeOptions
from gradscope.measure.options.attack import AttackOptions
from gradscope.measure.options.audit import AuditOptions
from gradscope.measure.options.common import Circumstances, ForeignOptions, Options
from gradscope.measure.options.judge import JudgeOptions
from gradscope.measure.options.landscape import LandscapeOptions
from gradscope.measure.options.spectrum import SpectrumOptions
from gradscope.measure.options.transfer import TransferOptions
from gradscope.options import DataOptions
from gradscope.validation import Config

__all__ = [
    "COMMANDS",
    "AnalyzeOptions",
    "AttackOptions",
    "AuditOptions",
    "JudgeOptions",
    "LandscapeOptions",
    "Request",
    "SpectrumOptions",
    "TransferOptions",
]

#: The measuring commands by name, in the order of the help.
COMMANDS: dict[str, type[Options]] = {
    kind.command: kind
    for kind in (
        AnalyzeOptions,
        LandscapeOptions,
        SpectrumOptions,
        AttackOptions,
        TransferOptions,
        AuditOptions,
        JudgeOptions,
    )
}


class Request(Config):
    """A requested measurement: its options, models, data set, facts about foreign models, and where it runs."""

    options: Options
    models: tuple[str, ...]
    data: DataOptions = DataOptions()
    foreign: ForeignOptions = ForeignOptions()
    where: Circumstances = Circumstances()

    def check(self) -> Self:
        """Validate the request as far as possible without torch; returns it. Raises :class:`GradscopeError`."""
        self.options.check(len(self.models))
        return self
