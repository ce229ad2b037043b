"""`scenesweep view` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenesweep.jobs import cli
from tests.pages import Parsed, published


def report(out: Path, results: list[dict[str, str]]) -> None:
    (out / "runs").mkdir(exist_ok=True)
    (out / "runs" / "20260101T000000-aaaaaa.json").write_text(json.dumps({"results": results}))
    (out / "runs" / "20250101T000000-aaaaaa.json").write_text("{}")


def test_all_scenes_get_a_page_and_the_index_links_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    small = ("publish.quicklook_px=100",)
    one, two = (str(published(out, name=name, settings=small)) for name in ("one", "two"))
    report(
        out,
        [
            {"scene_id": "one", "href": one, "status": "done"},
            {"scene_id": "lost", "href": "/x/lost.tif", "status": "failed", "reason": "gone"},
        ],
    )
    caplog.set_level("INFO")
    assert cli.main(["view", str(out)]) == 0
    assert capsys.readouterr().out == f"view: {out / 'view' / 'index.html'}\n"
    assert "picture of the scene" in caplog.text
    assert "picture of the quicklook" in caplog.text
    index = Parsed((out / "view" / "index.html").read_text())
    links = [attributes["href"] for _, attributes in index.tags if "href" in attributes]
    assert links == ["one.html", "two.html"]
    assert "/x/lost.tif" in index.words
    pictures = [
        Parsed((out / "view" / link).read_text()).data["scene"]["picture"] for link in links if link
    ]
    assert pictures == [[300, 300], [100, 100]]
    caplog.clear()
    assert cli.main(["view", str(out), two]) == 0
    assert "page: two" in caplog.text
    assert "page: one" not in caplog.text
    assert cli.main(["view", str(out), "one", "--to", str(tmp_path / "to"), "--quicklooks"]) == 0
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["index.html", "one.html"]


def test_what_cannot_be_shown_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["view", str(out)]) == 2
    assert "expected published scenes in" in capsys.readouterr().err
    published(out, name="one")
    assert cli.main(["view", str(out), "other"]) == 2
    assert "other: expected a published scene (one) or its raster" in capsys.readouterr().err
    (out / "detections" / "date=unknown" / "two.parquet").write_text("not a table")
    assert cli.main(["view", str(out)]) == 3
    assert (out / "view" / "one.html").is_file()
    assert not (out / "view" / "two.html").exists()
