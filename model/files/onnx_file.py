"""Export a RetinaNet to ONNX, in the form that the QGIS plugin Deepness reads.

Input `pixels`: (1, bands, chip_px, chip_px) float32, values 0..255 divided by 255. The card's mean
and standard deviation are in the graph.

Output `detections`: (1, 4 + classes, K) float32. A column is one candidate: centre x, centre y,
width and height in pixels, then its score for each class; the best candidates come first. K is
at most `topk_per_level` times the number of levels. The reader drops candidates below `det_conf`
and applies NMS with `det_iou_thresh`. This is the layout of Ultralytics' YOLO, which Deepness calls
`YOLO_Ultralytics`.

The metadata of the file has Deepness' keys with JSON values (its documentation: "creators add
metadata to model"), and the card.
"""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from scenesweep.model.card import ModelCard
from scenesweep.model.errors import ModelError, check_extra
from scenesweep.model.files.checkpoint import load_network
from scenesweep.model.files.model_file import CARD_KEY, ModelFile
from scenesweep.model.networks.decode import decode_boxes
from scenesweep.model.networks.network import normalisation
from scenesweep.model.networks.retinanet import RetinaNet

OPSET = 18
INPUT, OUTPUT = "pixels", "detections"
MOST_PX = 1e-2
_COMPARED = 200


class Candidates(nn.Module):
    """A RetinaNet that returns the best candidates of one chip, as `OUTPUT` above."""

    def __init__(self, network: RetinaNet) -> None:
        super().__init__()
        card = network.card
        self.network = network
        self.side = card.chip_px
        shape = (card.chip_px, card.chip_px)
        anchors = torch.cat(network.anchors(shape, torch.device("cpu")))
        self.most = min(
            len(anchors), card.inference.topk_per_level * len(card.architecture.searched)
        )
        mean, std = normalisation(card)
        self.register_buffer("anchors", anchors)
        self.register_buffer("scale", 255 / std)
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (1, 4 + classes, K) for pixels (1, bands, H, W) in 0..1."""
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        outputs = self.network(pixels * scale + shift)
        scores = torch.cat([level.logits[0] for level in outputs]).sigmoid()
        if self.network.card.architecture.iou_branch:
            scores = scores * torch.cat([level.quality[0] for level in outputs]).sigmoid()[:, None]
        deltas = torch.cat([level.deltas[0] for level in outputs])
        best = scores.amax(dim=1).topk(self.most).indices
        boxes = decode_boxes(deltas[best], self.get_buffer("anchors")[best]).clamp(0, self.side)
        low, high = boxes[:, :2], boxes[:, 2:]
        columns = torch.cat([(low + high) / 2, high - low, scores[best]], dim=1)
        return columns.T[None]


def onnx_content(model: ModelFile) -> bytes:
    """Return the content of an ONNX file for a model.

    onnxruntime runs the file on one chip of noise, and its boxes are compared with ours.

    Raises:
        MissingExtra: when a package of the extra `onnx` is missing.
        ModelError: when the model is not a RetinaNet of ours, its weights do not fit the card, or
            onnxruntime gives other boxes.
    """
    check_extra("onnx", ("onnx", "onnxruntime", "onnxscript"))
    network = load_network(model)
    if not isinstance(network, RetinaNet):
        raise ModelError(
            f"model {model.card.name}: expected architecture.kind retinanet for ONNX, got "
            f"{model.card.architecture.kind}"
        )
    candidates = Candidates(network).eval()
    exported = _graph(candidates)
    for key, value in onnx_metadata(model.card).items():
        entry = exported.metadata_props.add()
        entry.key, entry.value = key, value
    content: bytes = exported.SerializeToString()
    difference = largest_difference(content, candidates)
    if not difference <= MOST_PX:
        raise ModelError(
            f"model {model.card.name}: onnxruntime gives boxes that differ by {difference:.3g} px "
            f"from ours, expected at most {MOST_PX:g}; the file is not written"
        )
    return content


@torch.inference_mode()
def largest_difference(content: bytes, candidates: Candidates) -> float:
    """Run an ONNX file and our network on a chip of noise; return the largest difference.

    Each of our best candidates is compared with the nearest of the file's: coordinates in pixels,
    and scores in hundredths, so that `MOST_PX` allows 1e-4 of a score.
    """
    import onnxruntime

    card = candidates.network.card
    noise = torch.Generator().manual_seed(0)
    pixels = torch.rand((1, len(card.bands), card.chip_px, card.chip_px), generator=noise)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])[0].T
    ours = candidates(pixels)[0].T[:_COMPARED]
    weight = torch.ones(ours.shape[1])
    weight[4:] = 100
    distance = ((ours[:, None] - theirs[None]).abs() * weight).amax(dim=2)
    return float(distance.amin(dim=1).max())


def onnx_metadata(card: ModelCard) -> dict[str, str]:
    """Return the metadata of an ONNX file: values are JSON."""
    overlap = math.ceil(100 * 2 * card.margin_px / card.chip_px)
    values: dict[str, Any] = {
        "model_type": "Detector",
        "det_type": "YOLO_Ultralytics",
        "class_names": dict(enumerate(card.classes)),
        "resolution": round(100 * card.gsd_m, 6),  # centimetres
        "tile_size": card.chip_px,
        "tiles_overlap": overlap,  # per cent
        "det_conf": card.inference.score_threshold,
        "det_iou_thresh": card.inference.nms_iou,
        "det_remove_overlap": True,
        "standardization_mean": [0.0] * len(card.bands),
        "standardization_std": [1.0] * len(card.bands),
        "bands": card.bands,
    }
    return {key: json.dumps(value) for key, value in values.items()} | {
        CARD_KEY: card.model_dump_json()
    }


@torch.inference_mode()
def _graph(module: Candidates) -> Any:
    """Return the graph as onnx's ModelProto."""
    card = module.network.card
    example = torch.zeros(1, len(card.bands), card.chip_px, card.chip_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own parts
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    if program is None:
        raise ModelError(f"model {card.name}: torch {torch.__version__} exported no graph")
    return program.model_proto
