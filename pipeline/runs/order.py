"""What tests share."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as replace_in

from scenesweep.model.files.model_file import ModelFile
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.scene import SceneRef


@dataclass(frozen=True, slots=True)
class Order:
    """What a run has to do: which scenes, with which model and settings.

    `night` is the name of such runs in monitoring (the setting `name`). `allowed_failed` is how
    many scenes may fail without making the run a failure.
    """

    sources: tuple[SceneRef, ...]
    model: ModelFile
    job: Job
    night: str = ""
    allowed_failed: int = 0

    def replacing(self) -> Order:
        """Return an order that may replace results of a wider area by those of a narrower one."""
        return replace_in(self, job=replace_in(self.job, replace_wider=True))

    def of_writer(self, key: str) -> Order:
        """Return the order of a run that claims its scenes: `pipeline.runs.writers`."""
        return replace_in(self, job=replace_in(self.job, writer=key))
