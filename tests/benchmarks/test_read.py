"""The benchmark of reading runs, on rasters so small that its figures mean nothing."""

from __future__ import annotations

from pathlib import Path

from benchmarks.read import CODECS, cases, measured


def test_it_measures_reading_against_decoding(tmp_path: Path) -> None:
    every = 5
    figures = measured(tmp_path, size=256, rounds=1, every=every)
    chosen = list(cases())[::every]
    of_cases = [figure for figure in figures if not figure.what.startswith("  ")]
    assert [figure.what for figure in of_cases] == [case.name for case in chosen]
    for figure, case in zip(of_cases, chosen, strict=True):
        assert figure.value > 0
        assert (figure.met is None) == (case.target is None)
    for_a_gpu = [figure for figure in figures if figure.what == "  as source pixels"]
    computed = [case for case in chosen if case.scale != 1 or case.dtype == "uint16"]
    assert len(for_a_gpu) == len(computed) > 0


def test_its_cases_have_all_codecs_types_and_scales() -> None:
    every = list(cases())
    assert {case.codec for case in every} == set(CODECS)
    assert {case.dtype for case in every} == {"uint8", "uint16"}
    assert {case.scale for case in every} == {0.5, 0.75, 1.0, 1.42}
    assert {case.nodata for case in every} == {None, 0}
