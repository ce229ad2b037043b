"""A run computes in one way, and does not mix its shards with those of another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scenesweep.pipeline.detection import computing as deciding
from scenesweep.pipeline.detection.computing import (
    IN_THIS_PROCESS,
    Computing,
    DetectorHost,
    agreed_computing,
    computing_here,
)
from scenesweep.pipeline.detection.parts import computing_of_parts
from scenesweep.pipeline.errors import ModelError, UnfitMachine
from scenesweep.pipeline.flow import detect_and_stage, finish, prepare, read
from scenesweep.pipeline.planning.plan import Job
from scenesweep.pipeline.runs.order import Order
from scenesweep.pipeline.settings import DetectSettings
from scenesweep.pipeline.sweep import carry_out, is_resumed
from tests.rasters import SquareDetector, make_card, make_job, paint_squares, ref_of, write_raster
from tests.small_models import a_model
from tests.sweeps import digests

ON_GPU = Computing("cuda", "bfloat16")
ON_CPU = Computing("cpu", "float32")


class Squares(SquareDetector):
    """Squares that a device finds."""

    def __init__(self, runs_on: str) -> None:
        self.runs_on = runs_on


@pytest.mark.parametrize(
    ("ran_on", "computing"),
    [
        ("cpu float32 winograd", ON_CPU),
        ("cpu float32", ON_CPU),
        ("cuda bfloat16, NVIDIA H200, batch 16, torch 2.11, cuDNN 9.1", ON_GPU),
        ("cuda NVIDIA H200 bfloat16", ON_GPU),
        ("", None),
        ("an FPGA", None),
    ],
)
def test_a_detector_says_how_it_computes(ran_on: str, computing: Computing | None) -> None:
    assert Computing.of(ran_on) == computing


@pytest.mark.parametrize(
    ("host", "device", "taken"),
    [
        (DetectorHost(own_process=True, gpu_share=1), "auto", "cuda"),
        (DetectorHost(own_process=True, gpu_share=0.5), "cuda", "cuda"),
        (DetectorHost(own_process=True), "auto", "cpu"),
        (DetectorHost(own_process=True), "cuda", "cuda"),  # which says that there is none
        (IN_THIS_PROCESS, "auto", "auto"),
        (IN_THIS_PROCESS, "cpu", "cpu"),
    ],
)
def test_only_a_process_that_reserved_a_gpu_uses_one(
    host: DetectorHost, device: Any, taken: str
) -> None:
    assert host.device_for(DetectSettings(device=device)) == taken


def test_a_reserved_gpu_that_cannot_be_used_never_becomes_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnfitMachine, match="expected a CUDA GPU"):
        computing_here(DetectSettings(), make_card(), DetectorHost(True, 1.0))
    with pytest.raises(ModelError, match="expected a CUDA GPU"):  # a wrong setting
        computing_here(DetectSettings(device="cuda"), make_card(), DetectorHost(True))


@pytest.mark.parametrize(
    ("own", "first", "agreed"),
    [
        (Computing("cpu", "bfloat16"), "cpu bfloat16", Computing("cpu", "bfloat16")),
        (Computing("cpu", "bfloat16"), "cpu float32", ON_CPU),
        (ON_CPU, "cpu float32", ON_CPU),
        (ON_CPU, "cpu bfloat16", None),  # it would be emulated
        (ON_CPU, "cuda float32", None),
    ],
)
def test_all_detectors_follow_the_first_one(
    monkeypatch: pytest.MonkeyPatch, own: Computing, first: str, agreed: Computing | None
) -> None:
    monkeypatch.setattr(deciding, "computing_here", lambda *_: own)
    host = DetectorHost(own_process=True, agree=lambda proposed: first)
    if agreed is None:
        with pytest.raises(UnfitMachine, match=rf"as {own}, but this run computes as {first}"):
            agreed_computing(DetectSettings(), make_card(), host)
        return
    assert agreed_computing(DetectSettings(), make_card(), host) == agreed
    settings = agreed.within(DetectSettings(threads=3))
    assert (settings.device, settings.precision, settings.threads) == (
        agreed.device,
        agreed.precision,
        3,
    )


def test_explicit_settings_are_what_they_say() -> None:
    exact = DetectSettings(device="cpu", precision="float32")
    assert IN_THIS_PROCESS.computing_named_by(exact) == ON_CPU
    assert IN_THIS_PROCESS.computing_named_by(DetectSettings(precision="float32")) is None
    reserved = DetectorHost(own_process=True, gpu_share=1)
    assert reserved.computing_named_by(DetectSettings(precision="bfloat16")) == ON_GPU


def _stage(job: Job, scene: Path, ran_on: str, *, shards: slice = slice(None)) -> Any:
    """Stage some of the shards that are left, and return the plan of the scene before."""
    planned = prepare(ref_of(scene), job=job)
    tasks: list[Any] = list(planned.work)[shards]
    for task in tasks:
        chips: list[Any] = read([task])
        detect_and_stage(Squares(ran_on), [task], chips)
    return planned


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels, _ = paint_squares(300, 250, largest=10, seed=4)
    return write_raster(tmp_path / "scene.tif", pixels)


def test_parts_of_another_device_are_done_again(tmp_path: Path, scene: Path) -> None:
    job = make_job(tmp_path / "out", "tiling.shard=2")
    _stage(job, scene, "cuda bfloat16, NVIDIA H200", shards=slice(0, 2))
    _stage(job, scene, "cpu float32 winograd", shards=slice(0, 3))
    planned = prepare(ref_of(scene), job=job, computing=ON_CPU)
    assert planned.state is not None
    assert planned.state.resumed == 3
    (warning,) = planned.state.warnings
    assert warning.startswith("parts that were not computed as cpu float32 were done again: 2 ")
    _stage(job, scene, "cpu float32")
    result = finish(planned.state, {}, job=job)
    assert result.ran_on == ("cpu float32", "cpu float32 winograd")
    assert result.warnings[-1] == (
        "its shards ran on cpu float32 and on cpu float32 winograd: scores may differ in the "
        "last digits"
    )


def test_what_is_published_stays_whatever_the_next_run_computes_on(
    tmp_path: Path, scene: Path
) -> None:
    job = make_job(tmp_path / "out")
    planned = _stage(job, scene, "cuda bfloat16")
    assert planned.state is not None
    finish(planned.state, {}, job=job)
    before = digests(tmp_path / "out")
    again = prepare(ref_of(scene), job=job, computing=ON_CPU)
    assert again.result is not None
    assert again.result.status == "up-to-date"
    assert digests(tmp_path / "out") == before


def test_a_run_on_cpus_does_not_go_on_with_parts_of_a_gpu(tmp_path: Path, scene: Path) -> None:
    """The complete run, with a network; `auto` means a CPU here."""
    model = a_model(tmp_path)
    job = make_job(tmp_path / "out", "tiling.shard=2", "detect.device=cpu", card=model.card)
    job = replace(job, model_sha256=model.sha256)
    order = Order((ref_of(scene),), model, job)
    assert not is_resumed(order)
    _stage(job, scene, "cuda bfloat16", shards=slice(0, 2))
    assert is_resumed(order)
    (result,) = carry_out(order, address="none").results
    assert (result.status, result.resumed_shards) == ("done", 0)
    assert [Computing.of(ran_on) for ran_on in result.ran_on] == [
        computing_here(job.settings.detect, job.card, IN_THIS_PROCESS)
    ]


def test_parts_that_say_nothing_are_nobodys(tmp_path: Path, scene: Path) -> None:
    """Detectors of tests do not say what they run on; their parts are always reused."""
    job = make_job(tmp_path / "out", "tiling.shard=2")
    planned = _stage(job, scene, "")
    assert planned.state is not None
    (folder,) = (tmp_path / "out" / ".work").glob("scene-*")
    assert computing_of_parts(folder) is None
    assert len(prepare(ref_of(scene), job=job, computing=ON_CPU).work) == 0
