"""The column `probability`: from the card of the model, and no other value changes with it."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np

from scenesweep.pipeline.planning.plan import plan_scene
from scenesweep.pipeline.publish.publish import publish
from tests.pages import found
from tests.rasters import make_card, make_job, ref_of, write_raster

CLASSES = ("square", "other")
KNOTS = {"score": [0.2, 0.8], "probability": [0.1, 0.9]}


def table_of(folder: Path, name: str, views: str = "plain", **card: object) -> gpd.GeoDataFrame:
    scene = folder / "scene.tif"
    if not scene.exists():
        write_raster(scene, np.ones((1, 300, 300), np.uint8))
    settings = ("publish.formats=[]", f"detect.views=[{views}]")
    job = make_job(folder / name, *settings, card=make_card(classes=CLASSES, **card))
    files = publish(found(60, 300, classes=2), plan_scene(ref_of(scene), job), job)
    return gpd.read_parquet(str(files.table))


def test_probabilities_are_those_of_the_card(tmp_path: Path) -> None:
    plain = table_of(tmp_path, "plain")
    calibrated = table_of(tmp_path, "calibrated", calibration={"square": KNOTS})
    assert plain.probability.isna().all()
    assert plain.probability.dtype == np.float32
    is_square = calibrated.class_name == "square"
    assert calibrated.probability.isna().equals(~is_square)
    wanted = np.interp(calibrated.score[is_square], KNOTS["score"], KNOTS["probability"])
    np.testing.assert_allclose(calibrated.probability[is_square], wanted, rtol=1e-6)
    assert calibrated.drop(columns="probability").equals(plain.drop(columns="probability"))


def test_a_calibration_holds_in_the_views_it_was_measured_in(tmp_path: Path) -> None:
    flipped = {"views": ["flip-x", "plain"]}
    own = table_of(tmp_path, "own", "plain, flip-x", calibration={"square": KNOTS})
    assert own.probability.isna().all()
    fused = {"square": KNOTS | {"measured_in": flipped}, "other": KNOTS}
    both = table_of(tmp_path, "both", "plain, flip-x", calibration=fused)
    assert both.probability.notna().equals(both.class_name == "square")
    one = table_of(tmp_path, "one", calibration=fused)
    assert one.probability.notna().equals(one.class_name == "other")
