"""How a benchmark tells its figures: a table on the terminal, JSON under benchmarks/results."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `target` is empty where the figure only explains others."""

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None


def at_least(what: str, value: float, unit: str, least: float) -> Figure:
    """Return a figure that should reach `least`."""
    return Figure(what, value, unit, f">= {least:,g}", value >= least)


def at_most(what: str, value: float, unit: str, most: float) -> Figure:
    """Return a figure that should not exceed `most`."""
    return Figure(what, value, unit, f"<= {most:,g}", value <= most)


def tell(name: str, figures: list[Figure], **facts: Any) -> None:
    """Print the figures as a table and write them, with the machine's facts, as JSON."""
    rows = [("", "measured", "target", "")]
    for one in figures:
        verdict = "" if one.met is None else "met" if one.met else "NOT MET"
        rows.append((one.what, f"{one.value:,.4g} {one.unit}", one.target, verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{name}: {machine()['cpu']}, {machine()['cpus']} CPUs")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    document = {"figures": [asdict(one) for one in figures], "machine": machine(), **facts}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Say what a figure was taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags: list[str] = []
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        values = {key.strip(): value.strip() for key, _, value in lines}
        cpu = values.get("model name", cpu)
        wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        flags = [flag for flag in wanted if flag in values.get("flags", "").split()]
    return {
        "cpu": f"{cpu} ({', '.join(flags) or 'no vector flags'})",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "ray", "rasterio", "numpy")},
    }


def best_of(times: int, work: Callable[[], object]) -> float:
    """Return the shortest wall-clock time of some runs, in seconds."""
    shortest = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
