"""Two workers on this machine, in processes of their own, connected by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn

WORLD = 2


def run_workers(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Call `work(*arguments)` on two workers; return what each returned, by rank."""
    spawn(_begin, (str(folder), work, arguments), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _begin(rank: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=WORLD)
    torch.save(work(*arguments), Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
