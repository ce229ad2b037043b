"""What tests share."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as replace_in

from scenesweep.model.files.model_file import ModelFile
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.scene import SceneRef


@dataclass(frozen=True, slots=True)
class Order:
    """What a run is to do: which scenes, with which model, and what with each.

    `night` is what monitoring calls runs like this one.
    """

    sources: tuple[SceneRef, ...]
    model: ModelFile
    job: Job
    night: str = ""
    allowed_failed: int = 0

    def replacing(self) -> Order:
        """Return the order that may replace results by those of a narrower area."""
        return replace_in(self, job=replace_in(self.job, replace_wider=True))
