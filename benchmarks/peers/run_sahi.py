"""One sweep by SAHI with its torchvision model. Runs in the peers' environment."""

import sys

import pandas as pd
import torch
from sahi import AutoDetectionModel
from sahi.predict import get_sliced_prediction
from torchvision.models.detection import retinanet_resnet50_fpn

scene, weights, _, patch, overlap, out = sys.argv[1:]
network = retinanet_resnet50_fpn(
    weights=None, weights_backbone=None, num_classes=1, score_thresh=0.3, nms_thresh=0.05
)
network.load_state_dict(torch.load(weights, weights_only=True))
model = AutoDetectionModel.from_pretrained(
    model_type="torchvision",
    model=network,
    confidence_threshold=0.3,
    category_mapping={"0": "Tree"},
    device="cpu",
)
result = get_sliced_prediction(
    scene,
    model,
    slice_height=int(patch),
    slice_width=int(patch),
    overlap_height_ratio=float(overlap),
    overlap_width_ratio=float(overlap),
    perform_standard_pred=False,
    postprocess_type="NMS",
    postprocess_match_metric="IOU",
    postprocess_match_threshold=0.15,
)
rows = [(*one.bbox.to_xyxy(), one.score.value) for one in result.object_prediction_list]
pd.DataFrame(rows, columns=["xmin", "ymin", "xmax", "ymax", "score"]).to_csv(out, index=False)
