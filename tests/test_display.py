"""How scores, times and names are written."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.errors import InvalidInputError, OutputError
from audiotag.text import bar, clock, columns, fit, printable, printable_name, text_table


def test_clock():
    assert [clock(s) for s in (0, 59.94, 59.96, 3599.96, 36000)] == [
        "0:00.0",
        "0:59.9",
        "1:00.0",
        "1:00:00.0",
        "10:00:00.0",
    ]
    assert clock(61.5, decimals=0) == "1:02" and clock(61, decimals=0, hours=True) == "0:01:01"


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(1, 40))
def test_bars_are_as_long_as_their_scores(score, length):
    eighths = sum(8 if c == "█" else " ▏▎▍▌▋▊▉".index(c) for c in bar(score, length))
    assert eighths == round(score * length * 8) and len(bar(score, length, blocks=False)) == round(score * length)


@settings(deadline=None)
@given(st.text(max_size=30), st.integers(1, 20))
def test_fit_is_exactly_as_wide(text, width):
    assert columns(fit(text, width)) == width
    if columns(text) <= width:
        assert fit(text, width).rstrip(" ") == text.rstrip(" ")


ANY = st.text(
    st.characters() | st.sampled_from("\\\n\t\rnxu0285\udc80\udc85\udcff\ud800\x85\x1b\u202e\u2069")
)  # surrogates too


@settings(deadline=None)
@given(ANY)
def test_printable_text_is_one_line_of_unicode(text):
    shown = printable(text)
    assert shown.encode("utf-8").decode("utf-8") == shown and len(shown.splitlines()) <= 1 and printable(shown) == shown
    assert not any(
        unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI") for c in shown
    )
    assert "\x1b" not in shown and "\x9b" not in shown


@settings(deadline=None)
@given(ANY, ANY)
def test_no_two_names_look_alike(one, other):
    assert (printable_name(one) == printable_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a\nb", "a\\nb"), ("\x85", "\udc85"), ("\\\n", "\\\\n"), ("\u202e", "\\u202e"), ("\udcff", "\\xff")],
)
def test_names_that_looked_alike(one, other):
    assert printable_name(one) != printable_name(other)


def test_whatever_an_error_quotes_is_printable():
    error = InvalidInputError("no \x1b[31mlabel\n is called \u202e'x'")
    assert (
        str(error) == r"no \x1b[31mlabel\n is called \u202e'x'" and str(OutputError("plain \u00e4")) == "plain \u00e4"
    )


def test_tables_drop_bars_before_names():
    table_ = text_table("x", [("a long name", 0.5)], width=19)
    assert table_.splitlines()[1] == "  a long na…  0.500"
    assert text_table("x", [("a long name", 1.0)], width=30).splitlines()[1] == "  a long name  1.000  ████████"
