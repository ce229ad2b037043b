"""Write the page on which a person reviews chips. It is one file that needs no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from scenesweep import __version__
from scenesweep.model.card import ModelCard
from scenesweep.pipeline.results.review.chips import ReviewChip, on_chips
from scenesweep.pipeline.results.review.images import image_name
from scenesweep.pipeline.results.review.scenes import SceneBoxes
from scenesweep.pipeline.settings import fingerprint
from scenesweep.pipeline.storage.commit import atomic_write

_VIEW = "scenesweep.pipeline.results.view"
_REVIEW = "scenesweep.pipeline.results.review"
_SCRIPTS = (
    (_VIEW, "theme.js"),
    (_REVIEW, "labels.js"),
    (_REVIEW, "draw.js"),
    (_REVIEW, "review.js"),
)
_STYLES = ((_VIEW, "page.css"), (_REVIEW, "review.css"))
_DIGITS = 2  # of a pixel: a hundredth


@dataclass(frozen=True, slots=True)
class ReviewPage:
    """What the page shows.

    `scenes` and `uncertain` are those of `choose_chips`, by scene. `pictures` has a WebP file for
    each of `chips`.
    """

    card: ModelCard
    scenes: Sequence[SceneBoxes]
    chips: Sequence[ReviewChip]
    uncertain: Mapping[str, NDArray[np.bool_]]
    pictures: Sequence[bytes]

    def uncertain_shown(self) -> int:
        """Return the number of uncertain detections on the chips."""
        shown = [on_chips(s, self.chips) & self.uncertain[s.scene_id] for s in self.scenes]
        return sum(int(rows.sum()) for rows in shown)


def write_review_page(path: Path, page: ReviewPage) -> None:
    """Write the page. Equal content gives equal bytes."""
    style = "\n".join(_text(*name) for name in _STYLES)
    script = "\n".join(_text(*name) for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    text = (
        _environment()
        .get_template("review.html")
        .render(
            version=__version__,
            style=Markup(style),  # noqa: S704  our own files
            script=Markup(script),  # noqa: S704  our own files
            policy=f"default-src 'none'; img-src data: blob:; style-src '{_hash(style)}'; "
            f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'",
            title=f"Review of {page.card.name}",
            data=_data(page),
        )
    )
    with atomic_write(path, path.parent) as aside:
        aside.write_text(text, encoding="utf-8")


def _data(page: ReviewPage) -> dict[str, Any]:
    number = {scene.scene_id: index for index, scene in enumerate(page.scenes)}
    chips = [
        {
            "scene": number[chip.scene_id],
            "name": image_name(chip),
            "left": chip.window.col_off,
            "top": chip.window.row_off,
            "width": chip.window.width,
            "height": chip.window.height,
            "picture": b64encode(picture).decode(),
        }
        for chip, picture in zip(page.chips, page.pictures, strict=True)
    ]
    scenes = [
        {"id": scene.scene_id, "boxes": _boxes(scene, page.chips, page.uncertain[scene.scene_id])}
        for scene in page.scenes
    ]
    content = {
        "model": f"{page.card.name} {page.card.version}",
        "version": __version__,
        "classes": list(page.card.classes),
        "chips": chips,
        "scenes": scenes,
    }
    return content | {"key": fingerprint(content)}


def _boxes(
    scene: SceneBoxes, chips: Sequence[ReviewChip], uncertain: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Return the detections of a scene that touch one of its chips."""
    return [
        {
            "id": scene.ids[row].as_py(),
            "xyxy": scene.xyxy[row].round(_DIGITS).tolist(),
            "label": int(scene.label[row]),
            "score": round(float(scene.score[row]), 4),
            "probability": _known(float(scene.probability[row])),
            "uncertain": bool(uncertain[row]),
        }
        for row in np.flatnonzero(on_chips(scene, chips)).tolist()
    ]


def _known(probability: float) -> float | None:
    return None if np.isnan(probability) else round(probability, 4)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader(_REVIEW, "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _text(package: str, name: str) -> str:
    return files(package).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
