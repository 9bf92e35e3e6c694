"""Segments give the windows of the whole recording: the arithmetic, the samples, and recordings that end early."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.audio.recording import open_audio
from audiotag.corpus.segments import WHOLE, Grid, Segment, SegmentStream, cut
from audiotag.errors import AudioError
from audiotag.frontend.windows import cut_windows, window_starts

from .tiny import RATE, sound

GRID = Grid(window=1000, hop=400, rate_hz=RATE)


def windows_of(array, segment, grid):
    """First sample and contents of each window that a segment gives."""
    stream = SegmentStream(lambda: open_audio(array, target_rate_hz=RATE), segment, grid)
    with stream:
        found = list(cut_windows(stream.blocks(), grid.window, grid.hop))
    return [(stream.start + window.start, window.samples.tobytes()) for window in found]


def whole_windows(array, grid):
    return [(w.start, w.samples.tobytes()) for w in cut_windows([array], grid.window, grid.hop)]


@given(st.integers(1, 5000), st.integers(1, 50), st.integers(1, 50), st.floats(0.1, 500))
def test_segments_cover_the_grid_once(n_samples, window, hop, segment_s):
    grid = Grid(window, min(hop, window), 1)
    starts = window_starts(n_samples, *grid[:2])
    found = cut(n_samples, grid, segment_s)
    firsts = [number for s in found[:-1] for number in range(s.first, s.first + s.windows)]
    on_grid = [start // grid.hop for start in starts if start % grid.hop == 0]
    assert found[-1].windows is None
    assert firsts == on_grid[: len(firsts)] and found[-1].first == len(firsts)
    # the last has at least one window of its own on the grid, so the one moved back never begins before it
    assert found[-1].start(grid) <= max(0, n_samples - window)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(0, 9000), st.sampled_from((400, 1000, 330)), st.integers(1, 5))
def test_segments_of_a_recording_that_ends_before_its_header_says(there, missing, hop, per_segment):
    grid = Grid(1000, hop, RATE)
    array = np.random.default_rng(there).standard_normal(there).astype(np.float32)
    found, ended = [], 0
    for segment in cut(there + missing, grid, per_segment * hop / RATE):
        try:
            found += windows_of(array, segment, grid)
            assert not ended, "windows behind the end"
        except AudioError:
            ended += 1
    assert found == whole_windows(array, grid)


@pytest.mark.parametrize(
    ("form", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 32_000),
        ("WAV", "PCM_16", 44_100),
        ("WAV", "PCM_24", 44_101),
        ("FLAC", "PCM_16", 22_050),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
        ("MP3", "MPEG_LAYER_III", 32_000),
    ],
)
def test_a_section_is_the_same_samples(form, subtype, rate):
    data = encoded(np.tile(sound(10), 2), rate, form, subtype)
    with open_audio(data, target_rate_hz=RATE) as stream:
        whole = np.concatenate(list(stream.blocks()))
    for start, stop in ((0, 70_000), (123_457, 123_457 + 50_000), (7 * RATE, 9 * RATE), (10 * RATE, None)):
        with open_audio(data, target_rate_hz=RATE) as stream:
            found = np.concatenate(list(stream.section(start, stop)))
        expected = whole[start:stop]
        assert found.shape == expected.shape
        # soxr rounds otherwise where it begins elsewhere; 2e-7 is the last bit of a sample near 1
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if rate == RATE else 1e-5)


def encoded(samples, rate, form, subtype):
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 2, subtype, format=form) as sound_file:
        stereo = np.stack([samples, samples * 0.5], 1)
        for begin in range(0, len(stereo), 20_000):  # libsndfile's vorbis encoder dies of long writes
            sound_file.write(stereo[begin : begin + 20_000])
    return file.getvalue()


def test_a_damaged_recording_is_read_up_to_a_segment_where_it_cannot_be_sought(monkeypatch):
    from audiotag.audio import recording

    array = sound(1)[:9000]
    seeks = []
    original = recording.AudioStream.section

    def section(self, start, stop=None):
        seeks.append(start)
        raise AudioError("cannot seek")
        yield from original(self, start, stop)

    monkeypatch.setattr(recording.AudioStream, "section", section)
    found = windows_of(array, Segment(5, 4), GRID)
    assert seeks == [1000]
    assert found == whole_windows(array, GRID)[5:9]


def test_whole_is_no_segment():
    assert cut(999, GRID, 600) == [WHOLE] and WHOLE.stop(GRID) is None
