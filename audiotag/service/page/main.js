// The page: what the person does, what is shown, what is said.

import * as api from "./api.js";
import {offOf} from "./events.js";
import {audacityOf, clock, csvOf, download, make} from "./format.js";
import * as microphone from "./microphone.js";
import {Sound} from "./sound.js";
import {Timeline} from "./timeline.js";

const $ = (id) => document.getElementById(id);
const CATEGORIES = ["Human sounds", "Animal", "Music", "Sounds of things", "Natural sounds", "Source-ambiguous sounds", "Channel, environment and background"];
const SHORT_NAMES = {"Source-ambiguous sounds": "Other sounds", "Channel, environment and background": "Environment"};
const HOP_S = 1, LIVE_VIEW_S = 60, KEEP_S = 1800, MOST_ROWS = 500, SHOWN_TAGS = 8;

const timeline = new Timeline($("timeline"), $("canvas"), $("playhead"), $("hover"));
const audio = $("audio");
const state = {labels: [], model: null, sounds: [], sound: null, running: null, time: 0, moved: false, events: [], linked: true, url: null};
window.audiotag = state; // for tests and the curious

// -- saying things ---------------------------------------------------------------------------------------------------

const say = (text) => { $("status").textContent = text; };

function showProblem(title, text) {
  $("problem-title").textContent = title;
  $("problem-text").textContent = text;
  $("problem").hidden = false;
}
const hideProblem = () => { $("problem").hidden = true; };

/** Do something that may be refused; asks for the token where that is why. */
async function attempt(what, title) {
  try {
    return await what();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (error.status === 401) {
      askToken(() => attempt(what, title));
      return undefined;
    }
    showProblem(error.status ? `${title}: ${error.title}` : title, error.status ? error.message : plainly(error));
    return undefined;
  }
}

const plainly = (error) => (error instanceof TypeError ? "The service cannot be reached. Is it still running?" : error.message);

function askToken(then) {
  const dialog = $("ask-token");
  dialog.onclose = () => {
    if (dialog.returnValue !== "ok" || !$("token").value) return;
    api.setToken($("token").value);
    $("token").value = "";
    hideProblem();
    then();
  };
  dialog.returnValue = "";
  dialog.showModal();
}

// -- labels, colours -------------------------------------------------------------------------------------------------

const colorOf = (index) => {
  const category = CATEGORIES.indexOf(state.labels[index]?.category);
  return timeline.colors[`c${category < 0 ? index % 7 : category}`];
};
const nameOf = (index) => state.labels[index]?.name ?? `label ${index}`;

/** Labels the search names: by name, or by what is above them. Null: all. */
function chosen() {
  const words = $("search").value.trim().toLowerCase();
  if (!words) return null;
  const exact = state.labels.filter((label) => [label.name, ...label.ancestors].some((name) => name.toLowerCase() === words));
  const found = exact.length ? exact : state.labels.filter((label) => [label.name, ...label.ancestors].some((name) => name.toLowerCase().includes(words)));
  return new Set(found.map((label) => label.index));
}

const settings = () => ({
  on: Number($("on").value),
  off: state.linked ? undefined : Number($("off").value),
  minDuration: Number($("min-duration").value) || 0,
  maxGap: Number($("max-gap").value) || 0,
});

// -- drawing ---------------------------------------------------------------------------------------------------------

function refresh() {
  const {sound} = state;
  if (!sound) return;
  $("columns").hidden = Boolean(sound.error) && !sound.rows.length; // there is nothing to show
  const only = chosen();
  state.events = sound.events(settings(), only);
  const rows = sound.strongest(timeline.box.clientWidth < 520 ? 10 : 14, only);
  const lanes = new Map();
  for (const event of state.events) {
    if (!lanes.has(event.index)) lanes.set(event.index, []);
    lanes.get(event.index).push(event);
  }
  const described = (index) => ({index, name: nameOf(index), color: colorOf(index)});
  timeline.show({
    sound,
    fmin: state.model?.fmin_hz ?? 0,
    fmax: state.model?.fmax_hz ?? 15000,
    rows: rows.map(described),
    lanes: [...lanes].map(([index, events]) => ({...described(index), events})),
  });
  showTags();
  showTable();
  showFacts();
}

let waiting = 0;
const refreshSoon = () => { waiting ||= requestAnimationFrame(() => { waiting = 0; refresh(); }); };

function showTags() {
  const {sound} = state;
  const now = sound.live && !sound.done ? sound.duration : state.moved ? state.time : null;
  const scores = now === null ? sound.best : sound.live && !sound.done ? sound.rows[sound.rows.length - 1] ?? sound.best : sound.scoresAt(now);
  $("tags-title").textContent = sound.live && !sound.done ? "Now" : now === null ? "In the whole recording" : `Around ${clock(now)}`;
  const only = chosen();
  const best = !sound.rows.length ? [] : [...scores.keys()].filter((i) => !only || only.has(i)).sort((a, b) => scores[b] - scores[a]).slice(0, SHOWN_TAGS);
  const list = $("tags");
  while (list.children.length > best.length) list.lastChild.remove();
  best.forEach((index, i) => {
    const item = list.children[i] ?? list.appendChild(make("li", {}, make("span", {className: "label"}), make("span", {className: "score"}), make("span", {className: "meter"}, make("i"))));
    const [label, score, meter] = item.children;
    label.textContent = label.title = nameOf(index);
    score.textContent = scores[index].toFixed(2);
    meter.firstChild.style.width = `${100 * scores[index]}%`;
    item.style.setProperty("--c", colorOf(index));
  });
}

function showTable() {
  const {events} = state;
  $("event-count").textContent = events.length ? `· ${events.length}` : "";
  $("no-events").hidden = events.length > 0;
  $("events").hidden = !events.length;
  $("no-events").textContent = state.sound.done || state.sound.rows.length ? "None at these thresholds. Lower the score at which one begins." : "";
  const shown = events.slice(0, MOST_ROWS);
  const body = $("event-rows"), focused = document.activeElement?.dataset?.at;
  body.replaceChildren(...shown.map((event, i) => {
    const label = nameOf(event.index);
    const button = make("button", {type: "button"}, make("span", {className: "swatch", "--c": colorOf(event.index)}), label);
    button.dataset.at = i;
    button.setAttribute("aria-label", `${label}, from ${clock(event.onset_s)}; play from there`);
    button.addEventListener("click", () => { seek(event.onset_s); play(); });
    const cell = (text, wide) => make("td", {className: wide ? "wide" : ""}, text);
    return make("tr", {}, make("td", {}, button), cell(clock(event.onset_s)), cell(event.open ? "…" : clock(event.offset_s)),
      cell(`${(event.offset_s - event.onset_s).toFixed(1)} s`, true), cell(event.peak.toFixed(2)), cell(event.mean.toFixed(2), true));
  }));
  if (focused !== undefined) body.querySelector(`[data-at="${focused}"]`)?.focus({preventScroll: true});
  if (events.length > shown.length) body.append(make("tr", {}, make("td", {colSpan: 6}, `and ${events.length - shown.length} more; the exports have all`)));
}

function showFacts() {
  const {sound} = state;
  $("name").textContent = $("name").title = sound.name;
  const length = sound.live ? clock(sound.duration, 0) : sound.length ? clock(sound.length) : "";
  const where = state.moved && !(sound.live && !sound.done) ? `${clock(state.time)} of ${length}` : length;
  const how = sound.error ? (sound.rows.length ? "stopped" : "could not be analysed") : sound.live ? (sound.done ? "recorded here" : "listening") : sound.done ? "" : sound.rows.length ? "listening to it …" : "sending …";
  const lag = sound.lag ? `${sound.lag.toFixed(0)} s behind` : "";
  $("facts").textContent = [where, how, lag, ...sound.warnings].filter(Boolean).join(" · ");
  const box = $("timeline");
  box.setAttribute("aria-valuemax", sound.length.toFixed(1));
  box.setAttribute("aria-valuenow", state.time.toFixed(1));
  box.setAttribute("aria-valuetext", clock(state.time));
  const failed = Boolean(sound.error) && !sound.rows.length;
  for (const control of document.querySelectorAll(".zoom, .inline")) control.hidden = failed;
  $("play").disabled = failed || !(sound.blob || sound.file) || Boolean(sound.unplayable) || (sound.live && !sound.done);
  $("stop").hidden = state.running?.sound !== sound;
  $("stop").textContent = sound.live ? "Stop" : "Cancel";
  document.body.classList.toggle("live", Boolean(sound.live && !sound.done));
}

function showProgress(share) {
  const bar = $("progress");
  bar.hidden = share === null;
  bar.classList.toggle("unknown", share === undefined);
  bar.firstChild.style.width = share === undefined ? "" : `${100 * (share ?? 0)}%`;
  if (share) bar.setAttribute("aria-valuenow", Math.round(100 * share));
  else bar.removeAttribute("aria-valuenow");
}

timeline.ondraw = () => {
  timeline.placePlayhead(state.sound?.live && !state.sound.done ? -1 : state.time);
  $("scroll-box").hidden = !timeline.zoomed;
  const room = timeline.length - (timeline.to - timeline.from);
  if (document.activeElement !== $("scroll")) $("scroll").value = room > 0 ? (1000 * timeline.from) / room : 0;
};

// -- recordings ------------------------------------------------------------------------------------------------------

function select(sound) {
  if (audio.src) { audio.pause(); }
  state.sound = sound;
  state.time = 0;
  state.moved = false;
  if (state.url) URL.revokeObjectURL(state.url);
  const blob = sound.blob ?? sound.file;
  state.url = blob ? URL.createObjectURL(blob) : null;
  if (state.url) audio.src = state.url;
  else audio.removeAttribute("src");
  $("start").hidden = true;
  $("work").hidden = false;
  $("window").disabled = sound.live;
  timeline.from = 0;
  timeline.to = Math.max(timeline.length, 1);
  timeline.model = null;
  showOthers();
  refresh();
  timeline.fit();
}

function showOthers() {
  $("others").hidden = state.sounds.length < 2;
  $("others").replaceChildren(...state.sounds.map((sound) => {
    const button = make("button", {type: "button", title: sound.name}, sound.name);
    button.setAttribute("aria-current", sound === state.sound);
    button.addEventListener("click", () => select(sound));
    return button;
  }));
}

async function take(files) {
  hideProblem();
  if (state.running?.sound.live) await stopListening();
  const fresh = [...files].map((file) => {
    const sound = new Sound(file.name, state.labels.length, {hop: HOP_S});
    sound.file = file;
    return sound;
  });
  if (!fresh.length || !state.labels.length) return;
  state.sounds = [...fresh, ...state.sounds].slice(0, 12);
  state.queue = [...(state.queue ?? []), ...fresh];
  select(fresh[0]);
  if (!state.running) await work();
}

async function work() {
  while (state.queue?.length) {
    const sound = state.queue.shift();
    await attempt(() => analyze(sound), `${sound.name} cannot be analysed`);
    if (!sound.done && !state.running) {
      sound.error ??= "stopped";
      sound.done = true;
      if (sound === state.sound) { showProgress(null); refreshSoon(); }
    }
  }
}

async function analyze(sound) {
  const abort = new AbortController();
  state.running = {sound, stop: () => abort.abort()};
  showProgress(undefined);
  say(`Analysing ${sound.name}`);
  showFacts();
  let told = 0;
  const parameters = {hop: HOP_S, top: "all"};
  if ($("window").value && Number($("window").value) < (state.model?.window_s ?? 10)) parameters.window = $("window").value;
  try {
    await api.analyze(sound.file, parameters, (line) => {
      if (line.windows) takeWindows(sound, line.windows);
      else if (line.progress) {
        const {done_s: done, duration_s: length} = line.progress;
        if (length && sound.expected !== length) {
          sound.expected = length;
          if (sound === state.sound) timeline.fit();
        }
        if (sound === state.sound) showProgress(length ? Math.min(1, done / length) : undefined);
        if (length && Math.floor((4 * done) / length) > told && done < length) say(`${Math.round((100 * done) / length)} %`);
        told = length ? Math.floor((4 * done) / length) : 0;
      } else if (line.error) throw new api.Refused(0, "", line.error);
      else {
        sound.record = line;
        sound.warnings = line.warnings;
        sound.duration = line.duration_s;
        sound.expected = null;
      }
      if (sound === state.sound) refreshSoon();
    }, abort.signal);
    if (!sound.record) throw new Error("the service ended the connection early");
  } catch (error) {
    sound.error = error.name === "AbortError" ? "stopped" : error.message;
    throw error;
  } finally {
    sound.done = true;
    sound.expected = sound.record ? null : sound.expected;
    state.running = null;
    if (sound === state.sound) { showProgress(null); refresh(); if (sound.record) timeline.fit(); }
  }
  const top = [...sound.best.keys()].sort((a, b) => sound.best[b] - sound.best[a]).slice(0, 3).map(nameOf);
  say(`${sound.name} is done: ${state.events.length} events; best labels ${top.join(", ")}`);
}

function takeWindows(sound, {start_s: starts, end_s: ends, scores, strips}) {
  api.rowsOf(scores, sound.nLabels).forEach((row, i) => sound.addWindow(starts[i], ends[i], row));
  for (const strip of strips) takeStrip(sound, strip);
}

function takeStrip(sound, {logmel, waveform}) {
  if (logmel) sound.addMel(logmel.start_s, logmel.column_s, logmel.mels, api.bytesOf(logmel.levels));
  if (waveform) sound.addWave(waveform.start_s, waveform.column_s, new Int8Array(api.bytesOf(waveform.extremes).buffer));
}

// -- the microphone --------------------------------------------------------------------------------------------------

async function listen() {
  hideProblem();
  const reason = microphone.whyNot();
  if (reason) { showProblem("The microphone cannot be used here", reason); return; }
  const sound = new Sound(`Microphone, ${new Date().toLocaleTimeString()}`, state.labels.length, {hop: HOP_S, rate: state.model.sample_rate_hz, live: true});
  const chunks = [];
  let kept = 0, heard = 0, socket = null;
  const early = [];
  let mic;
  try {
    mic = await microphone.open($("device").value, (block) => {
      const n = 256, extremes = new Int8Array((2 * block.length) / n);
      for (let i = 0; i < extremes.length / 2; i++) {
        let low = 1, high = -1;
        for (let k = i * n; k < (i + 1) * n; k++) { low = Math.min(low, block[k]); high = Math.max(high, block[k]); }
        extremes[2 * i] = Math.round(127 * Math.max(-1, low));
        extremes[2 * i + 1] = Math.round(127 * Math.min(1, high));
      }
      sound.addWave(heard / mic.rate, n / mic.rate, extremes);
      heard += block.length;
      if (kept < KEEP_S * mic.rate) { chunks.push(block); kept += block.length; }
      if (socket?.readyState === WebSocket.OPEN && sound.ready) socket.send(block);
      else if (early.length < 200) early.push(block);
    });
  } catch (error) {
    showProblem("No microphone", microphone.explain(error));
    return;
  }
  sound.messages = [];
  const finished = new Promise((resolve) => {
    const start = {sample_rate: mic.rate, format: "pcm_f32le", hop: HOP_S, on: settings().on, scores: "all", picture: true, top: 3};
    socket = api.openStream(start, (message) => {
      sound.messages.push(message.type === "scores" || message.type === "picture" ? {type: message.type} : message);
      if (message.type === "ready") {
        sound.ready = true;
        for (const block of early.splice(0)) socket.send(block);
      } else if (message.type === "scores") {
        sound.lag = 0;
        const [row] = api.rowsOf(message.scores, sound.nLabels);
        sound.addWindow(message.start_s, message.end_s, row);
        const wide = timeline.to - timeline.from;
        if (sound === state.sound) {
          const follow = sound.duration <= LIVE_VIEW_S && !sound.zoomed ? [0, Math.max(10, sound.duration)] : [sound.duration - Math.min(wide, LIVE_VIEW_S), sound.duration];
          refreshSoon();
          timeline.look(...follow);
        }
      } else if (message.type === "picture") takeStrip(sound, message);
      else if (message.type === "onset") say(`${message.label} begins`);
      else if (message.type === "lag") { sound.lag = message.lag_s; refreshSoon(); }
      else if (message.type === "error") showProblem("The stream has ended", message.detail);
      else if (message.type === "closed") {
        if (message.code === 1006 && !sound.ready) showProblem("The stream was refused", "The service did not open it; it may want its token, or have too many streams.");
        resolve();
      }
    });
  });
  mic.onended(() => stopListening());
  let stopped = false;
  const stop = async () => {
    if (stopped) return finished;
    stopped = true;
    await mic.close();
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({type: "stop"}));
    return finished;
  };
  state.running = {sound, stop};
  state.sounds = [sound, ...state.sounds].slice(0, 12);
  select(sound);
  say("Listening to the microphone");
  listDevices();
  await finished;
  await stop();
  sound.done = true;
  state.running = null;
  sound.blob = microphone.wavOf(chunks, mic.rate);
  if (sound === state.sound) { select(sound); }
  say(`Stopped: ${state.events.length} events`);
}

const stopListening = () => state.running?.stop();

async function listDevices() {
  const found = await microphone.devices();
  const named = found.filter((device) => device.label);
  $("device-box").hidden = named.length < 2;
  $("device").replaceChildren(...named.map((device) => make("option", {value: device.deviceId}, device.label)));
}

// -- playing ---------------------------------------------------------------------------------------------------------

function seek(seconds) {
  if (!state.sound) return;
  state.time = Math.max(0, Math.min(seconds, state.sound.length));
  state.moved = true;
  if (audio.src && Number.isFinite(audio.duration)) audio.currentTime = state.time;
  else state.pendingSeek = state.time;
  if (state.time < timeline.from || state.time > timeline.to) {
    const span = timeline.to - timeline.from;
    timeline.look(state.time - span / 4, state.time + (3 * span) / 4);
  }
  timeline.placePlayhead(state.time);
  showTags();
  showFacts();
}

async function play() {
  if ($("play").disabled) return;
  try {
    await audio.play();
  } catch (error) {
    if (error.name === "AbortError") return;
    state.sound.unplayable = true;
    showFacts();
    showProblem("This browser cannot play it", "It was analysed all the same; browsers know fewer formats than the service.");
  }
}
const toggle = () => (audio.paused ? play() : audio.pause());

audio.addEventListener("loadedmetadata", () => {
  if (state.pendingSeek) audio.currentTime = state.pendingSeek;
  state.pendingSeek = 0;
});
for (const kind of ["play", "pause", "ended"]) {
  audio.addEventListener(kind, () => {
    $("play").setAttribute("aria-label", audio.paused ? "Play" : "Pause");
    $("play-icon").setAttribute("d", audio.paused ? "M8 5v14l11-7z" : "M7 5h4v14H7zM13 5h4v14h-4z");
    if (!audio.paused) follow();
  });
}

let toldAt = 0;
function follow() {
  state.time = audio.currentTime;
  state.moved = true;
  if (timeline.zoomed && (state.time > timeline.to || state.time < timeline.from)) timeline.look(state.time, state.time + timeline.to - timeline.from);
  timeline.placePlayhead(state.time);
  if (performance.now() - toldAt > 150) { toldAt = performance.now(); showTags(); showFacts(); }
  if (!audio.paused) requestAnimationFrame(follow);
}

// -- exports ---------------------------------------------------------------------------------------------------------

/** The record `audiotag events --format jsonl` writes, at the page's thresholds. */
function record() {
  const {sound} = state;
  const about = sound.record
    ? Object.fromEntries(Object.entries(sound.record).filter(([key]) => key !== "tags" && key !== "events"))
    : {source: sound.name, duration_s: sound.duration, checkpoint: state.model.id, window_s: state.model.window_s, hop_s: sound.hop, warnings: sound.warnings};
  return {...about, events: state.events.filter((e) => !e.open).map(({index, onset_s, offset_s, peak, mean}) =>
    ({label: nameOf(index), onset_s, offset_s, peak, mean, index, mid: state.labels[index].mid}))};
}
state.recordOf = record;
state.csvOf = () => csvOf(record());
state.audacityOf = () => audacityOf(record());

const stem = () => state.sound.name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}._ -]/gu, "_") || "audio";
$("save-json").addEventListener("click", () => download(JSON.stringify(record(), null, 1) + "\n", `${stem()}.events.json`, "application/json"));
$("save-csv").addEventListener("click", () => download(csvOf(record()), `${stem()}.events.csv`, "text/csv"));
$("save-audacity").addEventListener("click", () => download(audacityOf(record()), `${stem()}.labels.txt`, "text/plain"));

// -- what the person does --------------------------------------------------------------------------------------------

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { take($("file").files); $("file").value = ""; });
$("listen").addEventListener("click", listen);
$("stop").addEventListener("click", () => state.running?.stop());
$("again").addEventListener("click", () => { audio.pause(); $("work").hidden = true; $("start").hidden = false; hideProblem(); $("choose").focus(); });
$("problem-close").addEventListener("click", hideProblem);
$("play").addEventListener("click", toggle);
$("zoom-in").addEventListener("click", () => timeline.zoom(1.6, state.moved ? state.time : undefined));
$("zoom-out").addEventListener("click", () => timeline.zoom(1 / 1.6));
$("zoom-fit").addEventListener("click", () => timeline.fit());
$("scroll").addEventListener("input", () => {
  const span = timeline.to - timeline.from, from = (Number($("scroll").value) / 1000) * (timeline.length - span);
  timeline.look(from, from + span);
});
$("keys-open").addEventListener("click", () => $("keys").showModal());
$("window").addEventListener("change", () => {
  const {sound} = state;
  if (sound?.file && !state.running) take([sound.file]);
});

function showThresholds() {
  const on = Number($("on").value);
  if (state.linked) $("off").value = offOf(on).toFixed(2);
  if (Number($("off").value) > on) $("off").value = on;
  $("on-value").textContent = on.toFixed(2);
  $("off-value").textContent = state.linked ? `${(on / 2).toFixed(2)} (half)` : Number($("off").value).toFixed(2);
}
$("on").addEventListener("input", () => { showThresholds(); refreshSoon(); });
$("off").addEventListener("input", () => { state.linked = false; showThresholds(); refreshSoon(); });
for (const id of ["min-duration", "max-gap", "search"]) $(id).addEventListener("input", refreshSoon);

const wide = $("timeline");
let dragging = false;
const at = (event) => { const box = wide.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
wide.addEventListener("pointerdown", (event) => {
  if (event.button || at(event)[0] < timeline.gutter) return;
  dragging = true;
  wide.setPointerCapture(event.pointerId);
  seek(timeline.seconds(at(event)[0]));
});
wide.addEventListener("pointermove", (event) => {
  const [x, y] = at(event);
  if (dragging) seek(timeline.seconds(x));
  $("hover").hidden = x < timeline.gutter || event.pointerType === "touch";
  $("hover").textContent = timeline.model ? timeline.under(x, y) : "";
  const room = wide.clientWidth - $("hover").offsetWidth;
  $("hover").style.transform = `translate(${Math.max(0, Math.min(x + 12, room))}px, ${Math.max(0, y - 30)}px)`;
});
wide.addEventListener("pointerup", () => { dragging = false; });
wide.addEventListener("pointercancel", () => { dragging = false; });
wide.addEventListener("pointerleave", () => { $("hover").hidden = true; });
wide.addEventListener("wheel", (event) => {
  const span = timeline.to - timeline.from;
  if (event.ctrlKey || event.metaKey) timeline.zoom(Math.exp(-event.deltaY / 200), timeline.seconds(at(event)[0]));
  else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
    const by = ((event.deltaX || event.deltaY) / timeline.width) * span;
    timeline.look(timeline.from + by, timeline.to + by);
  } else return;
  event.preventDefault();
}, {passive: false});

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea, dialog *");
  if (event.key === "Escape" && state.running && !document.querySelector("dialog[open]")) { state.running.stop(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("work").hidden || document.querySelector("dialog[open]")) return;
  const step = event.shiftKey ? 10 : 1;
  const actions = {
    " ": () => { if (!event.target.matches("button, a")) toggle(); else return false; return true; },
    ArrowLeft: () => seek(state.time - step), ArrowRight: () => seek(state.time + step),
    Home: () => seek(0), End: () => seek(state.sound.length),
    "+": () => timeline.zoom(1.6, state.time), "=": () => timeline.zoom(1.6, state.time),
    "-": () => timeline.zoom(1 / 1.6, state.time), 0: () => timeline.fit(),
    "/": () => $("search").focus(), "?": () => $("keys").showModal(),
  };
  const action = actions[event.key];
  if (action && action() !== false) event.preventDefault();
});

let depth = 0;
document.addEventListener("dragenter", (event) => { event.preventDefault(); depth++; document.body.classList.add("dragging"); });
document.addEventListener("dragleave", () => { if (--depth <= 0) { depth = 0; document.body.classList.remove("dragging"); } });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});

const THEMES = ["auto", "light", "dark"];
function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme-name").textContent = name[0].toUpperCase() + name.slice(1);
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  localStorage.setItem("audiotag-theme", name);
  timeline.readColors();
  refreshSoon();
}
$("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("audiotag-theme") ?? "auto") + 1) % 3]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { timeline.readColors(); refreshSoon(); });

function drawArt() {
  const heights = [8, 14, 10, 22, 34, 46, 38, 26, 16, 30, 44, 52, 40, 24, 14, 20, 32, 22, 12, 8, 14, 26, 18, 10];
  heights.forEach((height, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({x: 2 + i * 10, y: 28 - height / 2, width: 5, height, rx: 2.5})) bar.setAttribute(name, value);
    bar.style.fill = `var(--c${[3, 3, 4, 0, 0, 3, 3, 1, 4][i % 9]})`;
    bar.style.opacity = 0.85;
    $("art").append(bar);
  });
}

async function start() {
  drawArt();
  setTheme(THEMES.includes(localStorage.getItem("audiotag-theme")) ? localStorage.getItem("audiotag-theme") : "auto");
  showThresholds();
  $("server").textContent = location.host;
  await attempt(async () => {
    const [models, labels] = await Promise.all([api.getJson("/v1/models"), api.getJson("/v1/labels")]);
    state.model = models.data[0];
    state.labels = labels;
    $("checkpoint").textContent = state.model.id;
    $("label-count").textContent = String(Math.max(0, labels.length - 4));
    $("max-length").textContent = state.model.limits.max_seconds === 3600 ? "an hour" : clock(state.model.limits.max_seconds, 0);
    $("label-names").replaceChildren(...[...CATEGORIES, ...labels.map((label) => label.name)].map((name) => make("option", {value: name})));
    const categories = CATEGORIES.filter((name) => labels.some((label) => label.category === name));
    $("legend").replaceChildren(...categories.map((name) => make("li", {"--c": `var(--c${CATEGORIES.indexOf(name)})`}, SHORT_NAMES[name] ?? name)));
    document.documentElement.dataset.ready = "yes";
  }, "The service is not ready");
  listDevices();
}
start();
