"""Install a wheel into an empty environment and use it as a new user would: ``python -m tests.distribution WHEEL``."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
#: Commands of a first quarter of an hour, and a file that each leaves.
COMMANDS = (
    ("--version", None),
    ("list modes", None),
    ("train --mode sl --epochs 1 --out sl.pt", "sl.pt"),
    ("analyze sl.pt --samples 40 --steps 4 --out results/analysis", "results/analysis/figures/steps-cosine.pdf"),
    (
        "landscape sl.pt --images 1 --points 5 --steps 2 --out results/landscape",
        "results/landscape/figures/landscape-3d.html",
    ),
    (
        "audit sl.pt --samples 80 --budget quick --norm linf --epsilon 0.1 --sarif audit.sarif --out results/audit",
        "audit.sarif",
    ),
    ("report results", "results/report.html"),
    ("report results --card", "results/card.md"),
    ("audit --schema", None),
)


def main(wheel: Path) -> None:
    """Make the environment, run the commands in it, and stop at the first that fails."""
    size = wheel.stat().st_size / 1024
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        program = home / "venv" / "bin"
        install = [program / "python", "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, wheel.resolve()]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run(install, check=True, cwd=home, env=environment)
        for command, left in COMMANDS:
            done = subprocess.run(
                [program / "gradscope", *command.split()], cwd=home, env=environment, capture_output=True, text=True
            )
            if done.returncode or (left and not (home / left).exists()):
                sys.exit(f"gradscope {command} failed, exit code {done.returncode}\n{done.stdout}{done.stderr}")
            print(f"gradscope {command}: {(done.stdout.splitlines() or ['nothing printed'])[-1][:100]}")
    print(f"{wheel.name}, {size:.0f} KiB, works in an empty environment")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
