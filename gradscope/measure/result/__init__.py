"""The results of measurements: in memory, saved, and read back."""

from gradscope.measure.result.attacks import Attacks, TransferMatrix
from gradscope.measure.result.base import Result
from gradscope.measure.result.paths import Landscape, Spectrum, Trace
from gradscope.measure.result.saved import read
from gradscope.measure.result.verdicts import AuditReport, JudgeReport

__all__ = [
    "Attacks",
    "AuditReport",
    "JudgeReport",
    "Landscape",
    "Result",
    "Spectrum",
    "Trace",
    "TransferMatrix",
    "read",
]
