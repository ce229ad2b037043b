"""All hostile and odd files, and a sweep over them in a process of its own.

python -m tests.faults.hostile       print the table of outcomes, for docs/reliability-inputs.md
python -m tests.faults.hostile FOLDER OUT [FILE...]     sweep files, print results as JSON
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from rasterio.errors import NotGeoreferencedWarning

from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.report import SceneResult
from scenesweep.pipeline.sources.ids import identified
from tests.faults import broken, odd
from tests.faults.case import Case
from tests.faults.pictures import write
from tests.rasters import make_card, make_job, ref_of
from tests.sweeps import sweep as plain

CASES: tuple[Case, ...] = (
    *broken.corrupt(),
    *broken.bombs(),
    *broken.disguises(),
    *broken.sidecars(),
    *odd.georeference(),
    *odd.pixels(),
    *odd.names(),
    *odd.links(),
)


def make(cases: tuple[Case, ...], folder: Path) -> dict[Case, Path]:
    """Make each file in a folder of its own."""
    made = {}
    for case in cases:
        path = folder / case.group / case.folder / case.file
        path.parent.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            case.make(path)
        if case.group in ("disguise", "sidecar"):
            write(path.parent / "secret.tif")
        made[case] = path
    return made


def table(cases: tuple[Case, ...] = CASES) -> str:
    """Return the outcomes as rows of Markdown, one a group and outcome."""
    rows: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        rows.setdefault((case.group, case.outcome), []).append(case.about)
    lines = [
        f"| {kind} | {outcome} | {'; '.join(told)} |" for (kind, outcome), told in rows.items()
    ]
    return "\n".join(["| kind | outcome | files |", "|---|---|---|", *lines])


def sweep_job(out: Path) -> Job:
    """Return the job of the sweeps here: any scale is taken as it is, in windows of 128 px."""
    settings = ("scenes.ids=path", "read.gsd_tolerance=0.99", "publish.quicklook=true")
    return make_job(out, *settings, card=make_card(chip_px=128))


def sweep(files: list[str], out: Path) -> list[SceneResult]:
    """Sweep files with the plain loop and a detector that finds squares."""
    return plain([identified(ref_of(file), "path") for file in files], sweep_job(out))


def peak_mib() -> float:
    """Return this process's peak of resident memory; getrusage counts its parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    if len(sys.argv) == 1:
        print(table())
        return
    listing, out = Path(sys.argv[1]), Path(sys.argv[2])
    results = sweep(json.loads(listing.read_text()), out)
    print(json.dumps({"peak_mib": peak_mib(), "results": [asdict(r) for r in results]}))


if __name__ == "__main__":
    main()
