"""Runs on a cluster of hosts: scenes and OUT are in a bucket, and each must end in equal bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenesweep.pipeline.storage.location import sizes_under
from scenesweep.pipeline.storage.objects import ObjectLocation
from tests.cluster.nodes import ROOT, Cluster
from tests.cluster.sweep import Begun, read_journal
from tests.faults.painted import SETTINGS, paint
from tests.stores import BUCKET, contents, s3_client

SHARDS = 80
NAP_S = 0.3  # of each shard


@dataclass(frozen=True)
class Night:
    """The same command for each run: scenes in a bucket, a model file, and settings."""

    folder: Path
    out: ObjectLocation
    sources: tuple[str, ...]
    model: Path
    clean: dict[str, str]

    def words(self, out: ObjectLocation, address: str, *settings: str) -> list[str]:
        """Return the command that writes to `out`."""
        kept = [each for each in SETTINGS if not each.startswith("engine.detectors")]
        sets = [word for each in (*kept, *settings) for word in ("--set", each)]
        told = ["--model", str(self.model), "--out", str(out), "--address", address, *sets]
        return [sys.executable, "-m", "tests.cluster.sweep", "detect", *self.sources, *told]

    def journal(self, out: ObjectLocation) -> Path:
        return self.folder / f"{out.name}.journal"

    def log(self, out: ObjectLocation) -> Path:
        return self.folder / f"{out.name}.log"

    def told(self, out: ObjectLocation, **more: str) -> dict[str, str]:
        """Return what the environment of a run tells its workers."""
        return {"JOURNAL": str(self.journal(out)), "NAP_S": str(NAP_S)} | more

    def command(self, out: ObjectLocation, address: str, *settings: str, **more: str) -> list[str]:
        """Return the complete command of a run, with what its environment tells its workers."""
        told = [f"{name}={value}" for name, value in self.told(out, **more).items()]
        return ["env", *told, *self.words(out, address, *settings)]

    def start(
        self, there: Cluster, out: ObjectLocation, *settings: str, **more: str
    ) -> subprocess.Popen[bytes]:
        """Start a run whose driver is on the head."""
        with self.log(out).open("ab") as log:
            words = self.command(out, there.address, *settings, **more)
            return there.start(there.head, words, log=log.fileno())

    def run(
        self, there: Cluster, out: ObjectLocation, *settings: str, **more: str
    ) -> dict[str, Any]:
        """Do a run and check it; return its report."""
        return self.check(out, self.start(there, out, *settings, **more))

    def begun(self, out: ObjectLocation) -> list[Begun]:
        """Return the shards that detectors began."""
        return read_journal(self.journal(out))

    def read(self, out: ObjectLocation) -> list[Begun]:
        """Return the shards that readers began."""
        return read_journal(Path(f"{self.journal(out)}.reads"))

    def check(self, out: ObjectLocation, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait for a run: no scene fails, and the bytes are those of the plain loop."""
        code = process.wait(timeout=240)
        assert code == 0, self.log(out).read_text()
        report = newest_report(out)
        assert report["scenes"]["failed"] == 0, report
        assert contents(out) == self.clean, f"{out}: other bytes"
        return report

    def repeated(self, out: ObjectLocation) -> int:
        """Return the number of shards that were detected again."""
        counts = Counter(begun.shard for begun in self.begun(out))
        assert len(counts) == SHARDS, self.log(out).read_text()
        return counts.total() - len(counts)


def prepare(folder: Path, out: ObjectLocation) -> Night:
    """Put painted scenes into the bucket, and sweep them in the plain loop."""
    painted = paint(folder)
    for scene in painted.scenes:
        s3_client().put_object(Bucket=BUCKET, Key=f"scenes/{scene.name}", Body=scene.read_bytes())
    sources = tuple(f"s3://{BUCKET}/scenes/{scene.name}" for scene in painted.scenes)
    night = Night(folder, out, sources, painted.model, {})
    clean = out / "clean"
    subprocess.run(
        night.words(clean, "none"),
        cwd=ROOT,
        env=os.environ | night.told(clean, NAP_S="0"),
        check=True,
        capture_output=True,
        timeout=120,
    )
    night.repeated(clean)
    return Night(folder, out, sources, painted.model, contents(clean))


def newest_report(out: ObjectLocation) -> dict[str, Any]:
    """Return the report that was put last."""
    reports = [path for path, _ in sizes_under(out / "runs") if path.suffix == ".json"]
    newest: dict[str, Any] = json.loads(max(reports, key=str).read_bytes())
    return newest


def longest_pause_s(begun: Sequence[Begun], since: float) -> tuple[float, float] | None:
    """Return how long it took until the next shard began, and the longest time without a begin.

    None if no shard began after that time.
    """
    times = [each.at for each in begun if each.at > since]
    if not times:
        return None
    pauses = [later - earlier for earlier, later in zip([since, *times], times, strict=False)]
    return round(pauses[0], 2), round(max(pauses), 2)
