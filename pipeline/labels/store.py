"""Store labelled chips in a folder. They may be larger than memory; several workers share them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenesweep.model.labelled_chips import LabelledChips
from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.storage.commit import atomic_write

_CHIPS, _LABELS = "chips.npy", "labels.npz"


def new_chips(folder: Path | None, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return a writable (N, bands, S, S) uint8 array; with `folder`, memory-mapped from a file."""
    if folder is None or not all(shape):
        return np.zeros(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LABELS).unlink(missing_ok=True)  # it belongs to other chips
    (folder / _CHIPS).unlink(missing_ok=True)  # a process may have it mapped: make a new file
    return np.lib.format.open_memmap(folder / _CHIPS, "w+", np.uint8, shape)


def store_chips(folder: Path, chips: LabelledChips) -> None:
    """Write chips to a folder. Pixels that are memory-mapped from there already are not copied."""
    folder.mkdir(parents=True, exist_ok=True)
    mapped = getattr(chips.chips, "filename", None)
    if mapped is None or Path(mapped).resolve() != (folder / _CHIPS).resolve():
        (folder / _LABELS).unlink(missing_ok=True)
        with atomic_write(folder / _CHIPS, folder) as path, path.open("wb") as file:
            np.save(file, chips.chips, allow_pickle=False)
    with atomic_write(folder / _LABELS, folder) as path, path.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            names=np.array(chips.names, np.str_),
            counts=np.array([len(boxes) for boxes in chips.boxes], np.int64),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *chips.boxes]),
            labels=np.concatenate([np.zeros(0, np.int64), *chips.labels]),
            points=np.array(chips.points),
        )


def open_chips(folder: Path) -> LabelledChips:
    """Open chips that `store_chips` wrote. Pixels are memory-mapped, not read.

    Raises:
        LabelError: when they are missing or damaged.
    """
    try:
        chips = np.load(folder / _CHIPS, mmap_mode="r", allow_pickle=False)
        with np.load(folder / _LABELS, allow_pickle=False) as rows:
            ends = np.cumsum(rows["counts"])[:-1]
            return LabelledChips(
                tuple(rows["names"].tolist()),
                chips,
                tuple(np.split(rows["boxes"], ends)) if len(chips) else (),
                tuple(np.split(rows["labels"], ends)) if len(chips) else (),
                bool(rows["points"]),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LabelError(
            f"{folder}: expected labelled chips ({_CHIPS} and {_LABELS}): {error}"
        ) from error
