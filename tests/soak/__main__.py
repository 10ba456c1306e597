"""``make soak``: hostile inputs and kills until the time is up, then a table; what failed is kept.

An input is refused in one line, or accepted; a run that is killed is resumed to the files of an undisturbed one.
Anything else is a failure: a traceback, a hang, memory beyond bounds, a program that is started, a file outside.
"""

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.soak import commands, files
from tests.soak.trials import Make, attempt


@dataclass
class Tally:
    """What has come of the inputs of a category."""

    ended: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    contained: int = 0
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return self.ended.total()


def soak(seconds: float, seed: int, keep: Path, only: list[str]) -> dict[str, Tally]:
    """Try inputs of each category in turn for so many ``seconds``; those that fail go to ``keep``."""
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        root = Path(place).resolve()
        (root / "material").mkdir()
        files.prepare(root / "material")
        every = files.makes(root / "material") | commands.makes(root / "material")
        makes = {name: make for name, make in every.items() if not only or name in only}
        tallies = {name: Tally() for name in makes}
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            # The category that has had least time: costly inputs keep cheap ones from nothing.
            name = min(makes, key=lambda name: tallies[name].seconds)
            number += 1
            begun = time.monotonic()
            _try(name, makes[name], f"{seed}-{number}", root / "trial", keep, tallies[name])
            tallies[name].seconds += time.monotonic() - begun
    return tallies


def _try(category: str, make: Make, seed: str, folder: Path, keep: Path, tally: Tally) -> None:
    folder.mkdir()
    random = Random(f"{category} {seed}")
    hostile = make(random, folder)
    before = folder.with_name("before")
    shutil.copytree(folder, before, symlinks=True, ignore=_special)
    outcome = attempt(hostile, folder)
    tally.ended[outcome.ended] += 1
    tally.contained += hostile.opens is not None
    tally.opened += bool(hostile.opens)
    if outcome.ended == "failed":
        kept = keep / category.replace(" ", "-").replace("/", "-") / seed
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(before, kept, symlinks=True)
        (kept / "SAID.txt").write_text(f"{hostile.done}\n\n{outcome.said}", errors="replace")
        print(f"{category}: {hostile.done!r:.300}\n    {outcome.said.strip()[-600:]}\n    kept: {kept}", flush=True)
    shutil.rmtree(before)
    shutil.rmtree(folder, ignore_errors=True)


def _special(folder: str, names: list[str]) -> list[str]:
    """What copying would wait for."""
    return [name for name in names if (Path(folder) / name).is_fifo()]


def table(tallies: dict[str, Tally]) -> str:
    """How the inputs of each category ended, and what share of them got past their container's own checks."""
    head = f"{'category':22}{'tried':>8}{'refused':>9}{'accepted':>10}{'failed':>8}{'opened':>9}{'s each':>9}"
    rows = [head]
    for name, tally in tallies.items():
        share = f"{tally.opened / tally.contained:9.0%}" if tally.contained else f"{'-':>9}"
        counts = [tally.ended[ended] for ended in ("refused", "accepted", "failed")]
        each = tally.seconds / max(tally.tried, 1)
        rows.append(f"{name:22}{tally.tried:8}{counts[0]:9}{counts[1]:10}{counts[2]:8}{share}{each:9.2f}")
    opened, contained = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("opened", "contained"))
    total: Counter[str] = sum((tally.ended for tally in tallies.values()), Counter())
    counts = [total[ended] for ended in ("refused", "accepted", "failed")]
    share = f"{opened / max(contained, 1):9.0%}"
    rows.append(f"{'all':22}{total.total():8}{counts[0]:9}{counts[1]:10}{counts[2]:8}{share}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat it; new where not given")
    parser.add_argument("--keep", type=Path, default=Path("soak"), help="where the inputs that fail are kept")
    parser.add_argument("--only", action="append", default=[], metavar="CATEGORY", help="one category; repeatable")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"seed {seed}, {given.seconds:g} s", flush=True)
    tallies = soak(given.seconds, seed, given.keep.resolve(), given.only)
    print(table(tallies))
    sys.exit(any(tally.ended["failed"] for tally in tallies.values()))


if __name__ == "__main__":
    main()
