"""`scenesweep inspect`: describe scenes, and how a model would cut them into windows."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from scenesweep.jobs.cli import run_job
from scenesweep.jobs.shared.causes import SharedCauses
from scenesweep.jobs.shared.described import scene_text
from scenesweep.jobs.shared.run_config import read_run_config
from scenesweep.jobs.shared.scene_arguments import add_scene_arguments
from scenesweep.pipeline.errors import Exit, SceneError, printable
from scenesweep.pipeline.planning.mask import valid_share
from scenesweep.pipeline.planning.plan import Method, Plan, inspect_for, plan_scene
from scenesweep.pipeline.raster.inspect import crs_name
from scenesweep.pipeline.runs.workload import workload_of
from scenesweep.pipeline.scene import Scene
from scenesweep.pipeline.sources import find_scenes
from scenesweep.pipeline.storage.network import without_secrets
from scenesweep.pipeline.storage.remote import local_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_scene_arguments(parser)
    parser.add_argument(
        "--model", help="also show how this model would cut the scenes into windows"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each scene")


def run(arguments: argparse.Namespace) -> int:
    """Inspect every scene and return the exit code; a scene that cannot be read gets one line."""
    config = read_run_config(arguments)
    settings = config.settings
    method, bands = None, settings.read.bands or ()
    if config.model:
        from scenesweep.model.files.model_file import open_model

        model = open_model(local_name(config.model))
        bands = bands or model.card.bands
        method = Method(model.card, model.sha256, settings.resolved(model.card))
    sources = find_scenes(config.named, settings.scenes, card_bands=bands)
    failed, causes = 0, SharedCauses()
    for source in sources:
        try:
            scene = inspect_for(source, settings.scenes)
            facts = scene_facts(scene, valid_share(scene))
            if method is not None:
                facts["cut"] = cut_facts(plan_scene(source, method))
        except SceneError as error:
            failed += 1
            if not causes.is_repeated(str(error)):
                print(printable(str(error)), file=sys.stderr)
            continue
        print(json.dumps(facts, default=str) if arguments.json else scene_text(facts))
    for line in causes.lines():
        print(line, file=sys.stderr)
    if not failed:
        return Exit.DONE
    return Exit.ALL_FAILED if failed == len(sources) else Exit.SOME_FAILED


def scene_facts(scene: Scene, share: float) -> dict[str, object]:
    """Return the facts about a scene as JSON-able values."""
    facts = asdict(scene)
    del facts["drivers"]  # a setting, not a fact of the scene
    return facts | {
        "parts": [without_secrets(part.href) for part in scene.parts],
        "crs": crs_name(scene),
        "transform": list(scene.transform)[:6] if scene.transform else None,
        "megapixels": round(scene.megapixels, 3),
        "valid_share": round(share, 4),
    }


def cut_facts(plan: Plan) -> dict[str, object]:
    """Return how a model would cut a scene, as JSON-able values."""
    layout, grid = plan.layout, plan.layout.grid
    work = workload_of(plan)
    sx, sy = plan.source.scale
    return {
        "bands": [index or None for index in plan.source.bands],
        "resampled_by": [round(sx, 4), round(sy, 4)],
        "grid": [grid.width, grid.height],
        "chip": grid.chip,
        "margin": grid.margin,
        "windows": work.windows,
        "skipped_windows": layout.skipped,
        "shards": work.shards,
        "bytes_to_read": work.read_bytes,
    }


if __name__ == "__main__":
    sys.exit(run_job("inspect"))
