"""Pictures: that they show the numbers, with axes one can read, without pyplot."""

import os
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from audiotag.config import FrontendConfig
from audiotag.errors import InvalidInputError, OutputError
from audiotag.frontend.logmel import LogMel
from audiotag.frontend.overview import logmel_image
from audiotag.labels.label_set import LabelSet, audioset_labels
from audiotag.results.events import hop_scores
from audiotag.results.plot import MAX_STEPS, plot_prediction, save_figure
from audiotag.results.prediction import Prediction
from audiotag.tagger import Tagger

LABELS = audioset_labels()
RATE = 32_000


def predicted(windows, labels=LABELS, hop_s=1.0, source="a.wav"):
    rng = np.random.default_rng(0)
    scores = rng.random((windows, len(labels)), dtype=np.float32) ** rng.integers(1, 20, len(labels)).astype(np.float32)
    start_s = np.arange(windows) * hop_s
    return Prediction(
        scores.max(0), scores, start_s, start_s + 10, labels, source, start_s[-1] + 10, "tiny", hop_s, 10.0, "max"
    )


def drawn(figure, axes):
    figure.draw_without_rendering()
    return [text.get_text() for text in axes.get_xticklabels()], [text.get_text() for text in axes.get_yticklabels()]


def test_the_heat_map_is_the_scores_over_time():
    prediction = predicted(30)
    figure = plot_prediction(prediction, k=5)
    axes = figure.axes[0]
    names = drawn(figure, axes)[1]
    power = np.square(prediction.window_scores.astype(float)).sum(0)
    best = sorted(range(527), key=lambda i: -power[i])[:5]
    assert names == [LABELS.names[i] for i in best], "what is up the most comes first"
    mesh = axes.collections[0]
    steps, edges_s = hop_scores(
        prediction.window_scores[:, best], prediction.window_start_s, prediction.window_end_s, hop_s=1.0
    )
    assert np.allclose(mesh.get_array().reshape(5, -1), steps.T)
    assert np.allclose(mesh.get_coordinates()[0, :, 0], edges_s)
    assert mesh.get_clim() == (0, 1) and axes.get_xlim() == (0, 39)
    assert axes.get_xlabel() == "time (s)" and figure.axes[1].get_ylabel() == "score"
    top, bottom = mesh.get_coordinates()[[0, 1], 0, 1]
    assert axes.transData.transform((0, top))[1] > axes.transData.transform((0, bottom))[1], "the first row is on top"


def test_one_window_is_drawn_as_bars():
    prediction = predicted(1)
    figure = plot_prediction(prediction, k=4)
    axes = figure.axes[0]
    tags = prediction.top(4)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([tag.score for tag in tags])
    assert drawn(figure, axes)[1] == [tag.label for tag in tags]
    assert axes.get_xlabel() == "score" and axes.get_xlim() == (0, 1)
    assert [text.get_text() for text in axes.texts] == [f"{tag.score:.3f}" for tag in tags]


def test_filters_and_their_errors():
    figure = plot_prediction(predicted(5), k=50, include="Dog")
    assert set(drawn(figure, figure.axes[0])[1]) == {LABELS.names[i] for i in LABELS.select("Dog")}
    for options in ({"k": 0}, {"include": "Dgo"}, {"logmel": np.zeros((64, 100))}, {"logmel": np.zeros((128, 0))}):
        with pytest.raises(InvalidInputError):
            plot_prediction(predicted(5), **options)


def test_the_logmel_stands_on_the_same_time_axis():
    image = np.random.default_rng(0).random((128, 500))
    figure = plot_prediction(predicted(291), logmel=image)
    above, below = figure.axes[:2]
    figure.draw_without_rendering()
    assert above.get_xlim() == below.get_xlim() == (0, 300)
    boxes = [axes.get_window_extent() for axes in (above, below)]
    assert boxes[0].x0 == pytest.approx(boxes[1].x0, abs=1) and boxes[0].x1 == pytest.approx(boxes[1].x1, abs=1)
    assert np.array_equal(above.images[0].get_array(), image)
    assert above.get_ylabel() == "frequency (kHz)" and drawn(figure, above)[1] == ["0.25", "0.5", "1", "2", "4", "8"]
    # 1 kHz lies on the HTK mel scale where it should, between 0 and 15 kHz.
    place = (above.get_yticks()[2] - above.get_ylim()[0]) / np.diff(above.get_ylim())[0]
    assert place == pytest.approx(np.log1p(1000 / 700) / np.log1p(15_000 / 700))


@pytest.mark.parametrize(
    ("windows", "name", "first", "last"),
    [
        (51, "time (s)", "0", "60"),
        (171, "time (min:s)", "0:00", "3:00"),
        (3591, "time (h:min:s)", "0:00:00", "1:00:00"),
        (35_991, "time (h:min:s)", "0:00:00", "10:00:00"),
    ],
)
def test_time_axes_are_round_on_a_clock(windows, name, first, last):
    labels = LabelSet.from_names(["a", "b"])
    figure = plot_prediction(predicted(windows, labels))
    axes = figure.axes[0]
    ticks = drawn(figure, axes)[0]
    shown = [text for text, at in zip(ticks, axes.get_xticks(), strict=True) if 0 <= at <= windows + 9]
    assert axes.get_xlabel() == name and 4 <= len(shown) <= 14 and (shown[0], shown[-1]) == (first, last)
    steps = axes.collections[0].get_array().reshape(2, -1)
    assert steps.shape[1] <= MAX_STEPS
    whole = hop_scores(
        axes_scores := predicted(windows, labels).window_scores, np.arange(windows), np.arange(windows) + 10, hop_s=1.0
    )[0]
    assert axes_scores.shape[0] == windows and steps.max() == pytest.approx(whole.max()), "peaks survive"


def test_names_are_shown_as_they_are():
    labels = LabelSet.from_names(["costs $5 or $6", "x" * 80, "_a_{b}^c"])
    figure = plot_prediction(predicted(3, labels, source="$a$_{b}.wav"))
    names = drawn(figure, figure.axes[0])[1]
    assert {"costs $5 or $6", "_a_{b}^c"} < set(names) and max(map(len, names)) == 32
    assert figure.axes[0].get_title(loc="left").startswith("$a$_{b}.wav")


def test_nothing_is_cut_off():
    figure = plot_prediction(predicted(30), logmel=np.random.default_rng(0).random((128, 300)), k=10)
    figure.draw_without_rendering()
    page = figure.bbox
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 <= box.y0 and box.y1 <= page.y1 + 1


def test_pictures_are_what_their_names_say(tmp_path):
    figure = plot_prediction(predicted(20), logmel=np.zeros((128, 10)))
    for suffix in ("png", "svg", "pdf", "PNG"):
        save_figure(figure, tmp_path / f"a.{suffix}")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" == (tmp_path / "a.PNG").read_bytes()[:8]
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"
    assert xml.etree.ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n", "a notebook shows it"
    with pytest.raises(InvalidInputError, match=r"must end in \.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "a.gif")
    with pytest.raises(OutputError):
        save_figure(figure, tmp_path / "none" / "a.png")
    assert sorted(os.listdir(tmp_path)) == ["a.PNG", "a.pdf", "a.png", "a.svg"]


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.001, 0.5, 10, 65])
def test_the_logmel_image_is_the_logmel(seconds):
    torch = pytest.importorskip("torch")
    waveform = noise(seconds)
    waveform[len(waveform) // 2 :] *= 0.1
    image = logmel_image(waveform, duration_s=seconds, max_columns=50)
    padded = np.pad(waveform, (0, max(0, 514 - len(waveform))))
    whole = LogMel()(torch.from_numpy(padded)[None])[0, 0].numpy()
    frames = max(1, round(seconds * 100))
    column = np.minimum(np.arange(whole.shape[1]) * min(50, frames) // frames, min(50, frames) - 1)
    expected = np.stack([whole[:, column == i].mean(1) for i in range(min(50, frames))], axis=1)
    assert image.shape == expected.shape and image.dtype == np.float32
    assert np.abs(image - expected).max() < 0.1 and np.abs(image - expected).mean() < 1e-3


def test_a_picture_from_a_prediction():
    pytest.importorskip("torch")
    prediction = predicted(3)
    assert len(prediction.plot().axes) == 2
    figure = prediction.plot(noise(12), k=3)
    assert len(figure.axes) == 3 and figure.axes[0].images[0].get_array().shape == (128, 1200)


def test_a_picture_is_drawn_with_the_frontend_of_the_checkpoint(tiny):
    """A tone at half the highest frequency lies where that is on the mel scale of another rate, range and hop."""
    frontend = FrontendConfig(
        16_000, n_fft=512, window_samples=400, hop_samples=320, n_mels=40, fmin_hz=100, fmax_hz=6000
    )
    config = replace(tiny.config, frontend=frontend)
    tagger = Tagger(replace(tiny, config=config), runtime="torch", device="cpu")
    tone = np.sin(2 * np.pi * 3000 * np.arange(12 * 16_000) / 16_000).astype(np.float32)
    prediction = tagger.predict(tone, hop_s=1.0)
    assert prediction.frontend == frontend
    axes = prediction.plot(tone, k=3).axes[0]
    image = np.asarray(axes.images[0].get_array())
    assert image.shape == (40, 600), "40 bands, and a column for each of 20 ms"
    low, high = axes.images[0].get_extent()[2:]
    loudest = low + (image.mean(1).argmax() + 0.5) * (high - low) / 40
    assert loudest == pytest.approx(np.log1p(3000 / 700), abs=(high - low) / 40)
    assert axes.get_ylim() == pytest.approx((np.log1p(100 / 700), np.log1p(6000 / 700)))


def test_pictures_need_no_pyplot(tmp_path):
    program = f"""
import sys
import numpy as np
from audiotag.labels.label_set import LabelSet
from audiotag.results.prediction import Prediction
scores, start_s = np.eye(3, 2, dtype=np.float32), np.arange(3.0)
prediction = Prediction(scores[0], scores, start_s, start_s + 1, LabelSet.from_names("ab"[i] for i in range(2)),
                        "a", 3.0, "tiny", 1.0, 1.0, "max")
assert "matplotlib" not in sys.modules
prediction.plot().savefig({str(tmp_path / "a.png")!r})
print("matplotlib.pyplot" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
