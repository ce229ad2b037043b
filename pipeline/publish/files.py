"""The files of one published scene: which there are, and where they lie in OUT."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from scenesweep.pipeline.planning.footprint import footprint
from scenesweep.pipeline.planning.plan import Job, Plan
from scenesweep.pipeline.publish.formats import FORMATS
from scenesweep.pipeline.storage.location import Location, name_in
from scenesweep.pipeline.storage.paths import COVERAGE, TABLES, Output, date_name

STYLE_SUFFIX = ".qml"
STYLE_KIND = "-style"
QUICKLOOK_KIND = "quicklook"


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """Where the files of a scene lie.

    `formats` and `styles` are by the name that `publish.formats` has for the format; only some
    formats have a style. `coverage` is None for a scene without georeference. `quicklook` and
    `item` are None when the settings do not ask for them.
    """

    formats: Mapping[str, Location]
    styles: Mapping[str, Location]
    coverage: Location | None
    quicklook: Location | None
    item: Location | None
    table: Location

    def by_kind(self) -> dict[str, Location]:
        """Return the files in the order of their writing: the table is the last.

        The keys are those of the run report and of the assets of the scene's STAC item.
        """
        files: dict[str, Location] = {}
        for name, path in self.formats.items():
            files[name] = path
            if name in self.styles:
                files[f"{name}{STYLE_KIND}"] = self.styles[name]
        if self.coverage is not None:
            files[COVERAGE] = self.coverage
        if self.quicklook is not None:
            files[QUICKLOOK_KIND] = self.quicklook
        if self.item is not None:
            files["item"] = self.item
        return files | {TABLES: self.table}

    def paths(self) -> list[Location]:
        """Return the files in the order of their writing: the table is the last."""
        return list(self.by_kind().values())

    def without(self, names: Collection[str]) -> SceneFiles:
        """Return the files without those of some formats."""
        formats = {name: path for name, path in self.formats.items() if name not in names}
        styles = {name: path for name, path in self.styles.items() if name not in names}
        return replace(self, formats=formats, styles=styles)

    def names_in(self, out: Location) -> set[str]:
        """Return the paths of the files below OUT, as the manifest lists them."""
        return {name_in(out, path) for path in self.paths()}


def files_for(plan: Plan, job: Job) -> SceneFiles:
    """Return all files that the settings ask for, of those that the scene can have.

    GeoJSON is among them; whether a scene has too many detections for it is known only later.
    """
    scene, output, settings = plan.scene, Output(job.out), job.settings.publish
    date = date_name(scene.acquired_at)
    names = [name for name in sorted(set(settings.formats)) if not _needs_georeference(plan, name)]
    return SceneFiles(
        formats={n: output.dated(n, date, f"{scene.id}{FORMATS[n].suffix}") for n in names},
        styles={
            n: output.dated(n, date, f"{scene.id}{STYLE_SUFFIX}")
            for n in names
            if FORMATS[n].styled
        },
        coverage=output.coverage(scene.id, date) if has_coverage(plan) else None,
        quicklook=output.quicklook(scene.id) if settings.quicklook else None,
        item=output.item(scene.id) if settings.stac else None,
        table=output.table(scene.id, date),
    )


def skipped_formats(plan: Plan, job: Job, *, rows: int) -> dict[str, str]:
    """Return which of the requested formats are not written for so many detections, and why."""
    most = job.settings.publish.geojson_max_rows
    reasons: dict[str, str] = {}
    for name in sorted(set(job.settings.publish.formats)):
        if _needs_georeference(plan, name):
            reasons[name] = f"no {name}: the scene has no georeference"
        elif name == "geojson" and rows > most:
            reasons[name] = (
                f"no geojson: {rows:,} detections are more than publish.geojson_max_rows "
                f"({most:,}); publish.formats has others"
            )
    return reasons


def may_be_skipped(name: str) -> bool:
    """Say whether a format is skipped for scenes with very many detections."""
    return name == "geojson"


def all_files_of(scene_id: str, output: Output[Location]) -> list[Location]:
    """Return every file that any run may have published for a scene, whatever its settings."""
    suffixes = {TABLES: {".parquet"}, COVERAGE: {".parquet"}}
    for name, form in FORMATS.items():
        suffixes[name] = {form.suffix, STYLE_SUFFIX} if form.styled else {form.suffix}
    files = [
        path
        for folder, allowed in suffixes.items()
        for path in output.dated_files(folder, scene_id)
        if path.name[len(scene_id) :] in allowed
    ]
    return [*files, output.quicklook(scene_id), output.item(scene_id)]


def has_coverage(plan: Plan) -> bool:
    """Say whether the ground of a scene is known."""
    return plan.scene.crs is not None and footprint(plan.scene) is not None


def _needs_georeference(plan: Plan, name: str) -> bool:
    """Say whether a scene lacks the georeference that a format needs."""
    return FORMATS[name].geographic and plan.scene.crs is None
