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
    many scenes may fail without making the run a failure. With `only_new`, a scene that any model
    and any version published counts as up to date.
    """

    sources: tuple[SceneRef, ...]
    model: ModelFile
    job: Job
    night: str = ""
    allowed_failed: int = 0
    only_new: bool = False

    def replacing(self) -> Order:
        """Return an order that may replace results of a wider area by those of a narrower one."""
        return replace_in(self, job=replace_in(self.job, replace_wider=True))

    def of_writer(self, key: str) -> Order:
        """Return the order of a run that claims its scenes: `pipeline.runs.writers`."""
        return replace_in(self, job=replace_in(self.job, writer=key))
