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
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from tests.soak import commands, files, kills, library, models
from tests.soak.kills import Kills
from tests.soak.trials import Input, Make, Outcome, attempt

#: In front of the names of categories in which a command is killed.
_KILLED = "killed: "


@dataclass
class Tally:
    """What has come of the trials of a category. ``contained``: inputs with a container, ``opened``: that opens."""

    ended: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    contained: int = 0
    kills: int = 0
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return self.ended.total()

    def add(self, other: "Tally") -> None:
        self.ended += other.ended
        self.opened, self.contained = self.opened + other.opened, self.contained + other.contained
        self.kills, self.seconds = self.kills + other.kills, self.seconds + other.seconds


class Soak:
    """Trials in the folder ``root``; the inputs that fail are kept in ``keep``."""

    def __init__(self, root: Path, seed: int, keep: Path, only: list[str]) -> None:
        self.root, self.seed, self.keep = root, seed, keep
        material = root / "material"
        material.mkdir()
        files.prepare(material)
        models.prepare(material)
        library.prepare(material / "library")
        self.makes: dict[str, Make] = files.makes(material) | commands.makes(material)
        self.makes |= models.MAKES | library.MAKES
        self.kills = {f"{_KILLED}{name}": partial(Kills, name, root / "killed") for name in kills.COMMANDS}
        self.begun: dict[str, Kills] = {}
        names = [name for name in (*self.makes, *self.kills) if not only or name.startswith(tuple(only))]
        self.tallies = {name: Tally() for name in names}

    def run(self, seconds: float) -> None:
        end, order = time.monotonic() + seconds, list(self.tallies)
        Random(self.seed).shuffle(order)
        inputs, killed = ([name for name in order if (name in self.kills) is kills] for kills in (False, True))
        while time.monotonic() < end:
            # The category that has had least time, so that costly ones do not crowd out cheap ones; a third is kills.
            least = killed if not inputs or 2 * self._seconds(killed) < self._seconds(inputs) else inputs
            name = min(least or inputs, key=lambda name: self.tallies[name].seconds)
            begun = time.monotonic()
            self.try_once(name)
            self.tallies[name].seconds += time.monotonic() - begun

    def _seconds(self, names: list[str]) -> float:
        return sum(self.tallies[name].seconds for name in names)

    def try_once(self, name: str) -> None:
        """The next trial of a category: which it is depends on the seed alone."""
        tally = self.tallies[name]
        trial = f"{self.seed}-{tally.tried}"
        random, folder = Random(f"{name} {trial}"), self.root / "trial"
        folder.mkdir()
        if name in self.kills:
            outcome = self._kill(name, random, folder)
        else:
            hostile = self.makes[name](random, folder)
            tally.contained += hostile.opens is not None
            tally.opened += bool(hostile.opens)
            outcome = self._attempt(name, trial, hostile, folder)
        tally.ended[outcome.ended] += 1
        if outcome.ended == "failed":
            print(f"{name} {trial}: {outcome.said.strip()[-1000:]}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _kill(self, name: str, random: Random, folder: Path) -> Outcome:
        if name not in self.begun:
            self.begun[name] = self.kills[name]()
        failure = self.begun[name].kill(random, folder)
        self.tallies[name].kills = self.begun[name].kills
        return Outcome("accepted", "") if failure is None else Outcome("failed", failure)

    def _attempt(self, name: str, trial: str, hostile: Input, folder: Path) -> Outcome:
        before = self.root / "before"
        shutil.copytree(folder, before, symlinks=True, ignore=_pipes)
        outcome = attempt(hostile, folder)
        if outcome.ended == "failed":
            kept = self.keep / name.replace(" ", "-").strip(".") / trial
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(before, kept)
            said = f"{hostile.done}\n\n{outcome.said}"
            (kept / "SAID.txt").write_text(said, errors="backslashreplace")
            return Outcome("failed", f"{hostile.done!r:.500}\n{outcome.said.strip()[-600:]}\nkept in {kept}")
        shutil.rmtree(before)
        return outcome


def _pipes(folder: str, names: list[str]) -> list[str]:
    """What copying would wait for."""
    return [name for name in names if (Path(folder) / name).is_fifo()]


def table(tallies: Mapping[str, Tally]) -> str:
    """How the trials of each category ended; of the inputs, the share that got past their container's own checks."""
    of_inputs = {name: tally for name, tally in tallies.items() if not name.startswith(_KILLED)}
    killed = {name: tally for name, tally in tallies.items() if name.startswith(_KILLED)}
    rows = [f"{'input':32}{'tried':>8}{'refused':>9}{'accepted':>10}{'failed':>8}{'opened':>8}{'s each':>8}"]
    for name, tally in _with_sum(of_inputs).items():
        share = f"{tally.opened / tally.contained:8.0%}" if tally.contained else f"{'-':>8}"
        ended = f"{tally.ended['refused']:9}{tally.ended['accepted']:10}{tally.ended['failed']:8}"
        rows.append(f"{name:32}{tally.tried:8}{ended}{share}{_each(tally)}")
    rows += ["", f"{'command':32}{'kills':>8}{'resumed':>9}{'':10}{'failed':>8}{'':8}{'s each':>8}"]
    for name, tally in _with_sum(killed).items():
        ended = f"{tally.ended['accepted']:9}{'':10}{tally.ended['failed']:8}"
        rows.append(f"{name.removeprefix(_KILLED):32}{tally.kills:8}{ended}{'':8}{_each(tally)}")
    return "\n".join(rows)


def _with_sum(tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    return {**tallies, "all": total}


def _each(tally: Tally) -> str:
    return f"{tally.seconds / max(tally.tried, 1):8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to repeat it; new where not given")
    parser.add_argument("--keep", type=Path, default=Path("soak"), help="where the inputs that fail are kept")
    parser.add_argument("--only", action="append", default=[], help="categories that begin so; repeatable")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"seed {seed}, {given.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        soak = Soak(Path(place).resolve(), seed, given.keep.resolve(), given.only)
        soak.run(given.seconds)
    print(table(soak.tallies))
    sys.exit(any(tally.ended["failed"] for tally in soak.tallies.values()))


if __name__ == "__main__":
    main()
