"""Let a person decide about the detections that the model is least sure of.

`choose_chips` selects small parts of the scenes around these detections, `write_images` writes
their pixels as the model saw them, and `write_review_page` one HTML page on which a person accepts,
rejects, moves and adds boxes. The labels that the page saves are COCO, for `scenesweep train`.
"""

from scenesweep.pipeline.results.review.chips import ReviewChip, chip_side, choose_chips
from scenesweep.pipeline.results.review.images import image_name, picture, read_chip, write_image
from scenesweep.pipeline.results.review.page import ReviewPage, write_review_page
from scenesweep.pipeline.results.review.scenes import (
    SceneBoxes,
    describe_model,
    model_of,
    open_scene_boxes,
    source_for,
)

__all__ = [
    "ReviewChip",
    "ReviewPage",
    "SceneBoxes",
    "chip_side",
    "choose_chips",
    "describe_model",
    "image_name",
    "model_of",
    "open_scene_boxes",
    "picture",
    "read_chip",
    "source_for",
    "write_image",
    "write_review_page",
]
