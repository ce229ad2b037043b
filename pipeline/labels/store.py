"""Labelled chips in a folder: larger than memory, and shared by several workers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.samples import Samples
from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.storage.commit import atomic_write

_CHIPS, _LABELS = "chips.npy", "labels.npz"


def new_chips(folder: Path | None, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return a writable (N, bands, S, S) uint8 array, mapped from a file of `folder` if given."""
    if folder is None or not all(shape):
        return np.zeros(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LABELS).unlink(missing_ok=True)  # of other chips
    (folder / _CHIPS).unlink(missing_ok=True)  # may be mapped: a new file leaves that one alone
    return np.lib.format.open_memmap(folder / _CHIPS, "w+", np.uint8, shape)


def store_samples(folder: Path, samples: Samples) -> None:
    """Write samples to a folder for `open_samples`; chips already mapped from there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    mapped = getattr(samples.chips, "filename", None)
    if mapped is None or Path(mapped).resolve() != (folder / _CHIPS).resolve():
        (folder / _LABELS).unlink(missing_ok=True)
        with atomic_write(folder / _CHIPS, folder) as path, path.open("wb") as file:
            np.save(file, samples.chips, allow_pickle=False)
    with atomic_write(folder / _LABELS, folder) as path, path.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            names=np.array(samples.names, np.str_),
            counts=np.array([len(boxes) for boxes in samples.boxes], np.int64),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *samples.boxes]),
            labels=np.concatenate([np.zeros(0, np.int64), *samples.labels]),
            points=np.array(samples.points),
        )


def open_samples(folder: Path) -> Samples:
    """Open samples that `store_samples` wrote; the chips are mapped, not read.

    Raises:
        LabelError: when they are not there, whole.
    """
    try:
        chips = np.load(folder / _CHIPS, mmap_mode="r", allow_pickle=False)
        with np.load(folder / _LABELS, allow_pickle=False) as rows:
            ends = np.cumsum(rows["counts"])[:-1]
            return Samples(
                tuple(rows["names"].tolist()),
                chips,
                tuple(np.split(rows["boxes"], ends)) if len(chips) else (),
                tuple(np.split(rows["labels"], ends)) if len(chips) else (),
                bool(rows["points"]),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LabelError(
            f"{folder}: expected labelled chips ({_CHIPS} and {_LABELS}), cannot open: {error}"
        ) from error
