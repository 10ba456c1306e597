"""Print the seconds of each stage of the studies below a folder as CSV: ``timings.py FOLDER``."""

import csv
import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["study", "stage", "state", "seconds", "device", "torch", "when"])
    for path in sorted(folder.glob("reports/*/.stages/*.json")):
        record = json.loads(path.read_text())
        where = record.get("where", {})
        rows.writerow(
            [
                *(path.parts[-3], record["label"], record["state"], record["seconds"]),
                *(where.get("device"), where.get("torch"), record["when"]),
            ]
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
