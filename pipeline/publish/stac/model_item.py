"""A model as a STAC Item with the Machine Learning Model extension, version 1.5.

https://github.com/stac-extensions/mlm. The card does not record where and when a model is valid,
so the item covers the whole world, as the extension's best practices recommend (many catalogues
refuse an item without a geometry), and all time. It contains no clock, so the same model gives
the same item. Its fields are written by hand: pystac 1.15 writes `value_scaling` as an object,
and MLM requires an array.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import Any

from scenesweep.model.card import ModelCard
from scenesweep.model.files.model_file import ModelFile, parameter_count

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/version/v1.2.0/schema.json",
)
_ARCHITECTURES = {
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "faster_rcnn": "Faster R-CNN",
    "ssd": "SSD",
}
_WORLD = (-180.0, -90.0, 180.0, 90.0)
SIZES_MEANINGFUL = "scenesweep:sizes_meaningful"
"""The property of a model's item that is false if the sizes of boxes mean nothing."""
SHA256 = "1220"  # multihash: SHA2-256, 32 bytes
_TASKS = ["object-detection"]


def model_item(model: ModelFile, *, href: str) -> dict[str, Any]:
    """Describe a model as a STAC Item, ready for JSON; `href` is the address of its file."""
    west, south, east, north = _WORLD
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": f"{model.card.name}-{model.card.version}",
        "bbox": list(_WORLD),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": _common(model.card) | _mlm(model),
        "links": [],
        "assets": {"model": _asset(model, href)},
    }


def _bands(card: ModelCard) -> list[dict[str, str]]:
    """Return the bands. MLM requires them in the item, and STAC then also in the asset."""
    return [{"name": str(band)} for band in card.bands]


def _common(card: ModelCard) -> dict[str, Any]:
    """Return the fields of STAC itself and of its version extension."""
    properties: dict[str, Any] = {
        "title": card.name,
        "datetime": None,
        "start_datetime": "1900-01-01T00:00:00Z",
        "end_datetime": "9999-12-31T23:59:59Z",
        "gsd": card.gsd_m,
        "bands": _bands(card),
        "version": card.version,
    }
    if not card.sizes_meaningful:
        properties[SIZES_MEANINGFUL] = False
    if card.description:
        properties["description"] = card.description
    if card.licence:
        spdx = re.fullmatch(
            r"[\w.+-]+", card.licence
        )  # other licences are named in the description
        properties["license"] = card.licence if spdx else "other"
    return properties


def _mlm(model: ModelFile) -> dict[str, Any]:
    card = model.card
    torch_version = re.match(r"\d+\.\d+\.\d+", version("torch"))
    return {
        "mlm:name": mlm_name(card.name),
        "mlm:architecture": _ARCHITECTURES[card.architecture.kind],
        "mlm:tasks": _TASKS,
        "mlm:framework": "PyTorch",
        "mlm:framework_version": torch_version[0] if torch_version else "0.0.0",
        "mlm:total_parameters": parameter_count(model.content),
        "mlm:pretrained": True,
        "mlm:accelerator": None,
        "mlm:accelerator_constrained": False,
        "mlm:input": [_input(card)],
        "mlm:output": [_output(card)],
        "mlm:hyperparameters": _hyperparameters(card),
    }


def mlm_name(name: str) -> str:
    """Return a model's name in the form that the extension requires.

    It wants a letter first, a letter or digit last, and three characters.
    """
    fits = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]+[A-Za-z0-9]", name)
    return name if fits else f"scenesweep-{name.rstrip('._-')}"


def _input(card: ModelCard) -> dict[str, Any]:
    bands = len(card.bands)
    mean, std = card.scaling.mean or (0.5,) * bands, card.scaling.std or (0.25,) * bands
    return {
        "name": "chips",
        "description": _input_text(card),
        "bands": [str(band) for band in card.bands],
        "input": {
            "shape": [-1, bands, card.chip_px, card.chip_px],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [
            {"type": "z-score", "mean": 255 * m, "stddev": 255 * s}
            for m, s in zip(mean, std, strict=True)
        ],
        "resize_type": None,
        "pre_processing_function": None,
    }


def _input_text(card: ModelCard) -> str:
    scaling = card.scaling
    low, high = scaling.source_range or scaling.percentiles
    how = (
        f"from {low:g}..{high:g}"
        if scaling.source_range
        else f"between percentiles {low:g}, {high:g}"
    )
    text = f"{card.gsd_m:g} m a pixel, values 0..255; types other than uint8 are stretched {how}"
    if card.missing_bands_ok:
        text += f"; may be missing: {', '.join(card.missing_bands_ok)}"
    return text


def _output(card: ModelCard) -> dict[str, Any]:
    return {
        "name": "detections",
        "description": "Of each chip: xmin, ymin, xmax, ymax in pixels, score, class",
        "tasks": _TASKS,
        "result": {
            "shape": [-1, -1, 6],
            "dim_order": ["batch", "detection", "value"],
            "data_type": "float32",
        },
        "classification:classes": [
            {
                "value": value,
                "name": re.sub(r"[^0-9A-Za-z_-]+", "-", name),
                "description": name,
            }
            for value, name in enumerate(card.classes)
        ],
        "post_processing_function": None,
    }


def _hyperparameters(card: ModelCard) -> dict[str, Any]:
    """Return the parts of the card that have no field in the extension."""
    values = json.loads(card.model_dump_json())  # which has no NaN
    names = ["architecture", "assignment", "losses", "inference"]
    names += ["class_thresholds", "calibration", "margin_px", "training"]
    return {name: values[name] for name in names if values[name] != {}}


def _asset(model: ModelFile, href: str) -> dict[str, Any]:
    return {
        "href": href,
        "title": "Weights, with the model card in the header",
        "type": "application/octet-stream; framework=pytorch",
        "roles": ["mlm:model", "mlm:weights", "data"],
        "bands": _bands(model.card),
        "mlm:artifact_type": "safetensors.torch.save_file",
        "file:size": len(model.content),
        "file:checksum": SHA256 + model.sha256,
    }
