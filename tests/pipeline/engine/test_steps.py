"""Why a step failed, on one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenesweep.pipeline.engine.steps import one_line
from scenesweep.pipeline.errors import shortened


@given(st.text("abc \n", max_size=60), st.integers(5, 40))
def test_a_reason_is_cut_between_words(text: str, most: int) -> None:
    words = text.split()
    line = " ".join(words)
    short = shortened(text, most)
    assert len(short) <= most
    if len(line) <= most:
        assert short == line
    else:
        kept = short.removesuffix(" …")
        assert kept != short
        assert line.startswith(kept)
        whole = kept.split() == words[: len(kept.split())]
        assert whole or len(words[len(kept.split()) - 1]) >= most // 2 - 2


@pytest.mark.parametrize(
    ("words", "expected"), [(3, "word word word"), (80, " ".join(["word"] * 57) + " …")]
)
def test_an_error_is_on_one_line(words: int, expected: str) -> None:
    assert one_line(ValueError("word\n\t" * words)) == f"ValueError: {expected}"
