"""COCO JSON. Boxes are x, y, width, height from the top left corner of the image."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scenesweep.pipeline.errors import LabelError
from scenesweep.pipeline.labels.names import read_text
from scenesweep.pipeline.labels.objects import LabelFile
from scenesweep.pipeline.labels.raw_labels import NO_BOX, LabelRowBuilder, Tally
from scenesweep.pipeline.labels.request import LabelRequest


def read_coco(path: Path, request: LabelRequest) -> LabelFile:
    """Read the annotations of a COCO file.

    Only rasters in its list of images are labelled. A listed image without annotations has no
    objects. Groups (`iscrowd`) are left out.

    Raises:
        LabelError: when it is not a COCO file, or its parts do not fit together.
    """
    images, annotations, categories = _parse(path)
    scene_of = {key: request.find(str(image.get("file_name", ""))) for key, image in images.items()}
    builder, notes = LabelRowBuilder(), Tally()
    for number, item in enumerate(annotations):
        where = f"annotation {item.get('id', number)}"
        key = _key(item.get("image_id"))
        image = images.get(key, {})
        if image:
            where += f" of {image.get('file_name')}"
        scene = scene_of.get(key, -1)
        if image and scene == -1 and request.is_other_image(str(image.get("file_name", ""))):
            notes.add("of images not asked for")
            continue
        if item.get("iscrowd"):
            notes.add("groups (iscrowd)", where)
            continue
        xyxy = _box(item.get("bbox"))
        fault = _fault(image, xyxy, request, scene)
        category = item.get("category_id")
        name = categories.get(_key(category), f"category {category}")
        builder.add(number, scene, xyxy, name=name, where=where, fault=fault)
    scenes = tuple(sorted({scene for scene in scene_of.values() if scene >= 0}))
    for scene in sorted(set(range(len(request.scenes))) - set(scenes)):
        notes.add("rasters not among its images, left out", request.scenes[scene].id)
    return LabelFile(builder.build(), scenes, notes=notes.result())


def parse_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        LabelError: when it is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path}: expected JSON: {error}") from error


def _parse(
    path: Path,
) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]], dict[Any, str]]:
    data = parse_json(path)
    parts = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(_is_rows(data.get(part)) for part in parts):
        raise LabelError(f"{path}: expected COCO JSON with lists of {', '.join(parts)}")
    try:
        images = {_key(image["id"]): image for image in data["images"]}
        categories = {_key(item["id"]): str(item["name"]).strip() for item in data["categories"]}
    except KeyError as error:
        raise LabelError(
            f"{path}: expected COCO images with an id, and categories with id and name; {error} is "
            "missing"
        ) from error
    return images, data["annotations"], categories


def _key(value: object) -> int | str | None:
    """Return a valid id; None for any other value."""
    return value if isinstance(value, int | str) else None


def _is_rows(part: object) -> bool:
    return isinstance(part, list) and all(isinstance(row, dict) for row in part)


def _box(bbox: object) -> tuple[float, ...]:
    try:
        x, y, width, height = (float(value) for value in bbox)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return NO_BOX
    return (x, y, x + width, y + height) if math.isfinite(x + y + width + height) else NO_BOX


def _fault(
    image: dict[str, Any], xyxy: tuple[float, ...], request: LabelRequest, scene: int
) -> str:
    if not image:
        return "of an image that the file does not list"
    if scene < 0:
        return "of an image that is not among the rasters"
    if xyxy is NO_BOX:
        return "without a bbox of four numbers"
    size = image.get("width"), image.get("height")
    raster = request.scenes[scene]
    if None not in size and size != (raster.width, raster.height):
        return "of an image whose size is not the raster's"
    return ""
