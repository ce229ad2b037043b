"""One sweep by DeepForest, as its documentation shows it. Runs in the peers' environment."""

import sys

from deepforest.main import deepforest

scene, folder, strategy, patch, overlap, out = sys.argv[1:]
model = deepforest(config_args={"model": {"name": folder}, "score_thresh": 0.3})
found = model.predict_tile(
    path=scene,
    patch_size=int(patch),
    patch_overlap=float(overlap),
    dataloader_strategy=strategy,
)
found[["xmin", "ymin", "xmax", "ymax", "score"]].to_csv(out, index=False)
