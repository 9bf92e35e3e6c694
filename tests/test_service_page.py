"""The page in a real browser: files, microphone, thresholds, keys, exports, barriers, and whom it asks: nobody else."""

import io
import json
import re
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiotag import Tagger

from .browser import chromium, requests_of
from .tiny import RATE, sound, tiny_checkpoint

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from .serving import serving

PAGE = Path(__file__).parent.parent / "audiotag" / "service" / "page"


def test_the_page_is_small_and_asks_nobody_else():
    files = list(PAGE.iterdir())
    assert sum(file.stat().st_size for file in files) <= 100_000
    for file in files:
        text = file.read_text()
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org", "http://localhost"}, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


@pytest.fixture(scope="module")
def tagger():
    return Tagger(tiny_checkpoint(), device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def server():
    with serving({"max_seconds": 120}) as running:
        yield running


@pytest.fixture(scope="module")
def browser(server):
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "a clip, 17 s.wav"
    soundfile.write(path, sound(17, 4), RATE)
    return path


def until(browser, script, seconds=30):
    """What a script gives as soon as it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = browser.execute_script(script)
        if found:
            return found
        time.sleep(0.05)
    page = browser.execute_script("return document.body.innerText")
    raise AssertionError(f"{script} gave nothing; the page says {page}")


def opened(browser, server):
    browser.get(server.url)
    until(browser, "return document.documentElement.dataset.ready")
    return browser


def loaded(browser, server, path):
    opened(browser, server)
    browser.find_element("id", "file").send_keys(str(path))
    until(browser, "return audiotag.sound?.done && !audiotag.running")
    time.sleep(0.2)
    return browser


def set_value(browser, name, value):
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        name,
        str(value),
    )
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def page_events(browser):
    return browser.execute_script("return audiotag.recordOf().events")


def complaints(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def barriers(browser):
    from axe_selenium_python import Axe

    axe = Axe(browser)
    axe.inject()
    return [(v["id"], [node["html"][:120] for node in v["nodes"]]) for v in axe.run()["violations"]]


def test_a_file_gives_the_events_of_the_tagger_and_thresholds_act_at_once(browser, server, tagger, clip):
    loaded(browser, server, clip)
    prediction = tagger.predict(clip, hop_s=1.0)
    for on, off, short, gap in ((0.3, None, 0, 0), (0.6, None, 0, 0), (0.6, 0.55, 2, 3), (0.9, 0.1, 0, 0)):
        set_value(browser, "on", on)
        if off is not None:
            set_value(browser, "off", off)
        set_value(browser, "min-duration", short)
        set_value(browser, "max-gap", gap)
        expected = prediction.events(on, off=off, min_duration_s=short, max_gap_s=gap)
        found = page_events(browser)
        assert [(e["label"], e["onset_s"], e["offset_s"]) for e in found] == [
            (e.label, e.onset_s, e.offset_s) for e in expected
        ]
        assert [e["peak"] for e in found] == pytest.approx([e.peak for e in expected], rel=1e-6)
        rows = browser.find_elements("css selector", "#event-rows button")
        assert len(rows) == min(len(expected), 500)
    assert not complaints(browser)


def test_a_search_narrows_rows_and_table_by_name_and_by_category(browser, server, tagger, clip):
    loaded(browser, server, clip)
    set_value(browser, "search", "Animal")
    prediction = tagger.predict(clip, hop_s=1.0)
    assert [e["label"] for e in page_events(browser)] == [e.label for e in prediction.events(include="Animal")]
    set_value(browser, "search", "no such label")
    assert page_events(browser) == [] and browser.find_element("id", "no-events").is_displayed()


def test_exports_are_the_commands(browser, server, tagger, clip, tmp_path):
    from audiotag.cli import main

    loaded(browser, server, clip)
    folder = tagger.save_pretrained(tmp_path / "tiny")
    for form, script in (("csv", "csvOf"), ("audacity", "audacityOf")):
        out = tmp_path / f"out.{form}"
        assert (
            main(
                [
                    "events",
                    str(clip),
                    "--model",
                    str(folder),
                    "--runtime",
                    "torch",
                    "--format",
                    form,
                    "-o",
                    str(out),
                    "--quiet",
                ]
            )
            == 0
        )
        expected = out.read_bytes().decode().replace(str(clip), clip.name)
        found = browser.execute_script(f"return audiotag.{script}()")
        assert strip_means(found) == strip_means(expected)


def strip_means(text):
    """Without the digits of a score that a sum in another order may change."""
    return re.sub(r"(0\.\d{5})\d+", r"\1", text)


def test_keys_move_and_zoom_and_the_position_is_told(browser, server, clip):
    from selenium.webdriver.common.keys import Keys

    loaded(browser, server, clip)
    timeline = browser.find_element("id", "timeline")
    timeline.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert timeline.get_attribute("aria-valuetext") == "0:02.0"
    timeline.send_keys(Keys.END)
    assert timeline.get_attribute("aria-valuetext") == "0:17.0"
    timeline.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    assert timeline.get_attribute("aria-valuetext") == "0:07.0"
    assert not browser.find_element("id", "scroll").is_displayed()
    timeline.send_keys("++")
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert browser.find_element("id", "scroll").is_displayed()
    timeline.send_keys("0")
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert not browser.find_element("id", "scroll").is_displayed()
    timeline.send_keys(Keys.HOME, " ")
    until(browser, "return audiotag.time > 0.2", 10)
    timeline.send_keys(" ")
    assert browser.find_element("id", "play").get_attribute("aria-label") in ("Play", "Pause")
    until(browser, "return document.getElementById('play').getAttribute('aria-label') === 'Play'", 5)
    assert "done" in browser.find_element("id", "status").get_attribute("textContent")


def test_a_file_that_is_no_audio_is_said_to_be_none(browser, server, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.wav"
    path.write_bytes(b"no audio at all " * 50)
    loaded(browser, server, path)
    problem = browser.find_element("id", "problem")
    assert problem.is_displayed() and "not audio" in problem.text and "<img" in browser.find_element("id", "name").text
    assert barriers(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (820, "dark"), (1440, "light")])
def test_axe_finds_no_barriers(browser, server, clip, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    loaded(browser, server, clip)
    set_value(browser, "on", 0.9)  # a short table: axe looks at every row
    assert barriers(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.find_element("id", "keys-open").click()
    assert barriers(browser) == []
    browser.find_element("css selector", "#keys button").click()
    browser.find_element("id", "again").click()
    assert barriers(browser) == []


def test_the_microphone_gives_the_events_of_its_stream_and_nothing_goes_elsewhere(server, tmp_path):
    path = tmp_path / "heard.wav"
    samples = np.round(np.concatenate([sound(4, 1), np.zeros(RATE * 2), sound(3, 6)]) * 20_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    with chromium(microphone=path) as browser:
        opened(browser, server)
        browser.find_element("id", "listen").click()
        until(browser, "return audiotag.sound?.duration >= 7")
        browser.find_element("id", "stop").click()
        until(browser, "return audiotag.sound?.done && !audiotag.running")
        messages = browser.execute_script("return audiotag.sound.messages")
        kinds = {m["type"] for m in messages}
        assert {"ready", "scores", "picture", "onset", "offset", "done"} <= kinds
        sent = [m for m in messages if m["type"] == "offset"]
        # A stream fills gaps of up to 2 s unless told otherwise; the page's box for it says 0 for recordings.
        set_value(browser, "max-gap", 2)
        found = page_events(browser)
        keys = ("label", "onset_s", "offset_s", "index")
        assert sorted([e[k] for k in keys] for e in found) == sorted([e[k] for k in keys] for e in sent)
        assert len(sent) > 3
        # What was recorded plays, and is what was heard: as long, and as loud.
        length = browser.execute_async_script(
            "const done = arguments[0]; audiotag.sound.blob.arrayBuffer().then((b) => done(b.byteLength))"
        )
        rate = next(m for m in messages if m["type"] == "ready")["sample_rate"]
        assert (length - 44) / 2 / rate == pytest.approx(messages[-2].get("position_s", 0) or 7, abs=0.5)
        constraints = browser.execute_async_script(
            "const done = arguments[0]; import('/page/microphone.js').then((m) => done(m.AS_IT_SOUNDS))"
        )
        assert constraints == {"echoCancellation": False, "noiseSuppression": False, "autoGainControl": False}
        assert not complaints(browser)
        addresses = [a for a in requests_of(browser) if not a.startswith(("blob:", "data:", "chrome:"))]
        assert addresses and {re.split(r"/+", a)[1] for a in addresses} == {server.host}


def test_a_token_is_asked_for_and_used(clip):
    with serving({}, {"token": "let me in, bitte schön"}) as server, chromium() as browser:
        browser.get(server.url)
        until(browser, "return document.getElementById('ask-token').open")
        browser.find_element("id", "token").send_keys("let me in, bitte schön")
        browser.find_element("css selector", "#ask-token button").click()
        until(browser, "return document.documentElement.dataset.ready")
        browser.find_element("id", "file").send_keys(str(clip))
        until(browser, "return audiotag.sound?.done && audiotag.sound.record")
        assert all("bitte" not in address for address in requests_of(browser))


def test_plain_http_elsewhere_is_told_why_there_is_no_microphone(browser, server):
    opened(browser, server)
    reason = browser.execute_async_script(
        """const done = arguments[0];
        Object.defineProperty(window, "isSecureContext", {value: false, configurable: true});
        import("/page/microphone.js").then((m) => done(m.whyNot()));"""
    )
    assert "https://" in reason and server.host in reason


def test_json_of_the_page_is_the_service_record(browser, server, clip):
    import urllib.request

    loaded(browser, server, clip)
    request = urllib.request.Request(server.url + "/v1/events", data=clip.read_bytes(), method="POST")
    expected = json.loads(urllib.request.urlopen(request).read())
    found = browser.execute_script("return audiotag.recordOf()")
    assert found.keys() == expected.keys()
    assert [e["label"] for e in found["events"]] == [e["label"] for e in expected["events"]]
    io.StringIO(json.dumps(found))
