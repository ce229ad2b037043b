"""Change the score threshold in the card of a model file."""

from __future__ import annotations

import json
from typing import Any

from scenesweep.model.card import ModelCard
from scenesweep.model.files.model_file import CARD_KEY, ModelFile

_ALIGNED_TO = 8  # bytes; the tensors of a safetensors file start at a multiple of it


def with_threshold(model: ModelFile, threshold: float, validation: dict[str, Any]) -> bytes:
    """Return the content of the model file with another score threshold.

    `validation`, the figures by which the threshold was chosen, goes into the card under
    `training`. Only the header changes (8 bytes of length, then JSON). The bytes of the weights
    stay the same.
    """
    length = int.from_bytes(model.content[:8], "little")
    header = json.loads(model.content[8 : 8 + length])
    header["__metadata__"][CARD_KEY] = _changed(model.card, threshold, validation).model_dump_json()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED_TO)
    return len(text).to_bytes(8, "little") + text + model.content[8 + length :]


def _changed(card: ModelCard, threshold: float, validation: dict[str, Any]) -> ModelCard:
    inference = card.inference.model_copy(update={"score_threshold": threshold})
    training = card.training | {"validation": validation}
    return card.model_copy(update={"inference": inference, "training": training})
