"""Write COCO JSON: boxes in scene pixels, for tools that work with images, not with maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scenesweep.pipeline.publish.formats.layer import Layer

_DECIMALS = 3  # of a pixel


def write_coco(layer: Layer, path: Path) -> None:
    """Write images, classes and boxes; images and categories are numbered from 1.

    An annotation has the fields of COCO's ground truth and a score, as COCO's results have, so
    that readers of either form accept it.
    """
    content = {
        "images": [
            {"id": number, "file_name": p.file_name, "width": p.width, "height": p.height}
            for number, p in enumerate(layer.images, start=1)
        ],
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(layer.classes, start=1)
        ],
        "annotations": _annotations(layer),
    }
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, separators=(",", ":"))


def _annotations(layer: Layer) -> list[dict[str, Any]]:
    table = layer.table
    images = _numbers(table["scene_id"], [image.scene_id for image in layer.images])
    categories = _numbers(table["class_name"], layer.classes)
    x0, y0, x1, y1 = (table[name].to_numpy() for name in ("x_min", "y_min", "x_max", "y_max"))
    boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).round(_DECIMALS)
    scores = table["score"].to_numpy().astype(str).astype(np.float64)  # 0.9, not 0.89999998
    names = table["detection_id"].to_pylist()
    columns = (images, categories, boxes.tolist(), scores.tolist(), names)
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": round(box[2] * box[3], _DECIMALS),
            "iscrowd": 0,
            "score": score,
            "detection_id": name,
        }
        for number, (image, category, box, score, name) in enumerate(
            zip(*columns, strict=True), start=1
        )
    ]


def _numbers(column: pa.ChunkedArray, names: list[str] | tuple[str, ...]) -> list[int]:
    """Return the position of each value among `names`, from 1."""
    position = {name: number for number, name in enumerate(names, start=1)}
    return [position[name] for name in column.to_pylist()]
