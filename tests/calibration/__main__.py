"""``make calibrate``: the audit on models of CIFAR-10 whose truth is known, and on defences that were broken.

Each model is trained once and kept; each row is written as it comes, and a row that is there is not made again.
"""

import argparse
import csv
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from gradscope.attacks.threat import ThreatModel
from gradscope.auditing.checks import CHECKS
from gradscope.auditing.verdict import Audit, examine
from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import Splits, stratified_sample
from gradscope.distributed.units import Work
from tests.calibration.attacks import accuracy, adaptive_pgd, plain_pgd
from tests.calibration.models import CASES, Case, cases

#: At 4/255 next to nothing stands of a network without a defence.
EPSILON = 4 / 255


@dataclass(frozen=True)
class Row:
    """A model and what is true of it, what two attacks by hand leave of the images, and what the audit says.

    ``proposed`` and ``broken`` name the papers, ``bypass`` the way round. Accuracies are shares of all images.
    """

    model: str
    kind: str
    seed: int
    proposed: str
    broken: str
    bypass: str
    clean: float
    pgd_leaves: float
    bypass_leaves: float
    truth: str
    verdict: str
    cause: str
    causes: str
    upper_bound: float
    ci_low: float
    ci_high: float
    fired: str
    reason: str
    images: int
    epsilon: float
    budget: str
    cpu_seconds: float

    @property
    def hidden(self) -> float:
        """What plain PGD leaves more than the known bypass, a share of all images."""
        return round(self.pgd_leaves - self.bypass_leaves, 6)

    @property
    def agrees(self) -> bool:
        """Whether verdict and cause are what is true of the model."""
        return agrees(self.truth, self.verdict, self.cause)


def agrees(truth: str, verdict: str, cause: str) -> bool:
    """Whether an audit's verdict and cause are the truth: a cause, or none of an honest model.

    Exact attacks get through an unsaturated softmax, so that nothing is masked, but the set-up is wrong.
    """
    if truth == "probabilities" and verdict == "set-up invalid":
        return cause == truth
    return (verdict, cause) == (("masking found", truth) if truth else ("none found within this budget", ""))


def calibrate(name: str, case: Case, splits: Splits, folder: Path, count: int, budget: str) -> Row:
    """Make the row of a model, on ``count`` test images, as many of each class."""
    model = case.make(splits.train, folder)
    began = time.process_time()
    images = splits.test.subset(stratified_sample(splits.test.labels, count, 0))
    points, labels = images.batch(torch.arange(count), "cpu")
    torch.manual_seed(case.seed)
    clean = accuracy(model, points, labels)
    left = accuracy(model, plain_pgd(model, points, labels, EPSILON), labels)
    defence = case.defence
    settings = {} if defence is None else {"draws": defence.draws, "noise": defence.noise}
    best = adaptive_pgd(case.way_round(model, splits.train, folder), points, labels, EPSILON, **settings)
    audit = examine(model, images, None, ThreatModel("linf", EPSILON), budget, work=Work(seed=case.seed))
    return Row(
        model=name,
        kind=case.kind,
        seed=case.seed,
        proposed="" if defence is None else defence.proposed,
        broken="" if defence is None else defence.broken,
        bypass="" if defence is None else defence.bypass,
        clean=clean,
        pgd_leaves=left,
        bypass_leaves=accuracy(model, best, labels),
        truth=case.cause or "",
        verdict=audit.verdict,
        cause=audit.cause or "",
        causes=", ".join(audit.causes),
        upper_bound=audit.upper_bound,
        ci_low=audit.interval.low,
        ci_high=audit.interval.high,
        fired=_fired(audit),
        reason=audit.reason,
        images=count,
        epsilon=EPSILON,
        budget=budget,
        cpu_seconds=time.process_time() - began,
    )


def _fired(audit: Audit) -> str:
    """The checks that fired, with "!" where they accuse."""
    return " ".join(check.id + "!" * check.accuses for check in audit.checks if check.fired)


HEADER = f"{'model':30}{'seed':>5}{'clean':>7}{'PGD':>7}{'bypass':>8}{'bound':>7}  {'verdict':31}{'cause':18}fired"


def line(row: Row) -> str:
    """A row as it is printed; the truth behind it where the audit says something else."""
    shares = f"{row.clean:7.2f}{row.pgd_leaves:7.2f}{row.bypass_leaves:8.2f}{row.upper_bound:7.2f}"
    wrong = "" if row.agrees else f"  <- {row.truth or 'honest'}"
    return f"{row.model:30}{row.seed:5}{shares}  {row.verdict:31}{row.cause or '-':18}{row.fired}{wrong}"


def by_check(rows: list[Row]) -> list[str]:
    """A line for each check that fired: on how many honest models and on how many that hide 20 points, and accuses."""
    honest, hiding = [row for row in rows if not row.truth], [row for row in rows if row.truth and row.hidden >= 0.2]
    lines = [f"{'check':7}{f'fires on {len(honest)} honest':20}{'accuses':10}{f'on {len(hiding)} that hide':20}accuses"]
    for name in CHECKS:
        seen = [[check for row in group for check in row.fired.split()] for group in (honest, hiding)]
        accused = [checks.count(f"{name}!") for checks in seen]
        fired = [checks.count(name) + loud for checks, loud in zip(seen, accused, strict=True)]
        if any(fired):
            lines.append(f"{name:7}{fired[0]:<20}{accused[0]:<10}{fired[1]:<20}{accused[1]}")
    return lines


def read(path: Path) -> list[Row]:
    """The rows of a table that was begun; none where there is no file."""
    if not path.is_file():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    with path.open(newline="") as file:
        return [Row(**{key: kinds[key](value) for key, value in row.items()}) for row in csv.DictReader(file)]


def write(path: Path, rows: list[Row]) -> None:
    """Write the rows in the order of :data:`CASES`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = list(CASES)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: order.index(row.model)):
            writer.writerow(
                {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in asdict(row).items()}
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make calibrate", description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="cifar10", help="colour images of 32 x 32 pixels: cifar10, or npz")
    parser.add_argument("--data-root", type=Path, help="where they are")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints/calibration"), help="where weights are kept"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/calibration"), help="where the table goes")
    parser.add_argument("--budget", default="quick", help="of the audit")
    parser.add_argument("--images", type=int, default=100, help="how many test images are attacked")
    parser.add_argument("--shift", type=int, default=0, help="added to every seed; another table")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="made again where they are there")
    given = parser.parse_args()
    splits = sources.load(Data(dataset=given.dataset, data_root=given.data_root))
    shifted = f"-shift-{given.shift}" if given.shift else ""
    path = given.out / f"{given.dataset}-{given.budget}{shifted}.csv"
    models = cases(given.shift)
    rows = [row for row in read(path) if row.model in CASES and row.model not in (given.only or ())]
    there = {row.model for row in rows}
    print(HEADER)
    for name in given.only or CASES:
        if name not in there:
            rows.append(calibrate(name, models[name], splits, given.checkpoints, given.images, given.budget))
            print(line(rows[-1]), flush=True)
            write(path, rows)
    print("\n".join(by_check(rows)))
    wrong = [row.model for row in rows if not row.agrees]
    print(f"{len(rows)} models, {len(rows) - len(wrong)} as they are; otherwise: {', '.join(wrong) or 'none'}")


if __name__ == "__main__":
    main()
