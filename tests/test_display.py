"""How scores, times and names are written."""

from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.text import bar, clock, columns, fit, printable, text_table


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


@settings(deadline=None)
@given(st.text())
def test_printable_text_is_one_line_of_unicode(text):
    shown = printable(text)
    assert shown.encode("utf-8").decode("utf-8") == shown and len(shown.splitlines()) <= 1 and printable(shown) == shown


def test_tables_drop_bars_before_names():
    table_ = text_table("x", [("a long name", 0.5)], width=19)
    assert table_.splitlines()[1] == "  a long na…  0.500"
    assert text_table("x", [("a long name", 1.0)], width=30).splitlines()[1] == "  a long name  1.000  ████████"
