// The picture: ruler, waveform, log-mel, scores and events over one time axis.

import {clock} from "./format.js";
import {hopScores, steps} from "./events.js";

const RULER = 24, WAVE = 62, MEL = 150, GAP = 10, ROW = 18, LANE = 21, TITLE = 18;
const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const FREQUENCIES = [500, 1000, 2000, 4000, 8000];
const MOST_LANES = 12;
const SHORTEST_VIEW_S = 0.5;

export class Timeline {
  constructor(box, canvas, playhead, hover) {
    Object.assign(this, {box, canvas, playhead, hover});
    this.context = canvas.getContext("2d");
    this.from = 0;
    this.to = 10;
    this.model = null;
    new ResizeObserver(() => this.draw()).observe(box);
    this.readColors();
  }

  readColors() {
    const style = getComputedStyle(document.documentElement);
    this.colors = new Proxy({}, {get: (_, name) => style.getPropertyValue(`--${name}`).trim()});
    const stops = [0, 1, 2, 3, 4].map((i) => {
      const hex = this.colors[`mel${i}`];
      return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    });
    this.palette = Array.from({length: 256}, (_, level) => {
      const at = (level / 255) * 4, i = Math.min(3, Math.floor(at)), t = at - i;
      return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * t));
    });
    for (const tile of this.model?.sound.mel?.tiles ?? []) tile.stale = true;
  }

  /** model: {sound, rows: [{index, name, color}], lanes: [{name, color, events}], hidden, fmin, fmax} */
  show(model) {
    this.model = model;
    this.draw();
  }

  get gutter() { return this.box.clientWidth < 520 ? 96 : 156; }
  get width() { return Math.max(1, this.box.clientWidth - this.gutter - 4); }
  get length() { return Math.max(0.01, this.model?.sound.length ?? 10); }
  x(seconds) { return this.gutter + ((seconds - this.from) / (this.to - this.from)) * this.width; }
  seconds(x) { return this.from + ((x - this.gutter) / this.width) * (this.to - this.from); }

  look(from, to) {
    const length = this.length, span = Math.min(Math.max(to - from, SHORTEST_VIEW_S), length);
    this.from = Math.max(0, Math.min(from, length - span));
    this.to = this.from + span;
    this.draw();
  }

  zoom(factor, around = (this.from + this.to) / 2) {
    this.look(around - (around - this.from) / factor, around + (this.to - around) / factor);
  }

  fit() { this.look(0, this.length); }
  get zoomed() { return this.to - this.from < this.length - 1e-6; }

  draw() {
    if (!this.model || this.scheduled) return;
    this.scheduled = requestAnimationFrame(() => {
      this.scheduled = 0;
      this.paint();
      this.ondraw?.();
    });
  }

  paint() {
    const {sound, rows, lanes} = this.model;
    const shown = lanes.slice(0, MOST_LANES), more = lanes.length - shown.length;
    const heatTop = RULER + WAVE + GAP + MEL + GAP + TITLE;
    const laneTop = heatTop + Math.max(1, rows.length) * ROW + GAP + TITLE;
    const height = laneTop + Math.max(1, shown.length) * LANE + (more > 0 ? LANE : 0) + 2;
    const ratio = window.devicePixelRatio || 1, width = this.box.clientWidth;
    if (!width) return;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.height = `${height}px`;
    }
    const c = this.context;
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    c.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    c.textBaseline = "middle";
    this.areas = [];
    this.drawRuler(height);
    this.drawWave(sound, RULER, WAVE);
    this.drawMel(sound, RULER + WAVE + GAP, MEL);
    this.drawTitle("Scores", heatTop - TITLE);
    this.drawRows(sound, rows, heatTop);
    this.drawTitle("Events", laneTop - TITLE);
    this.drawLanes(shown, laneTop, more);
  }

  inside(draw) {
    const c = this.context;
    c.save();
    c.beginPath();
    c.rect(this.gutter, 0, this.width, 1e5);
    c.clip();
    draw(c);
    c.restore();
  }

  name(text, y, color) {
    const c = this.context, most = this.gutter - (color ? 26 : 14);
    let shown = text;
    while (c.measureText(shown).width > most && shown.length > 2) shown = shown.slice(0, -2).trimEnd() + "…";
    if (color) {
      c.fillStyle = color;
      c.beginPath();
      c.roundRect(4, y - 4, 8, 8, 2.5);
      c.fill();
    }
    c.textAlign = "left";
    c.fillStyle = this.colors.text;
    c.fillText(shown, color ? 18 : 4, y);
  }

  drawTitle(text, y) {
    const c = this.context;
    c.textAlign = "left";
    c.fillStyle = this.colors.soft;
    c.fillText(text, 4, y + TITLE / 2 - 1);
  }

  drawRuler(height) {
    const c = this.context, span = this.to - this.from;
    const step = STEPS_S.find((s) => (s / span) * this.width >= 64) ?? 14400;
    c.strokeStyle = this.colors.line;
    c.lineWidth = 1;
    c.fillStyle = this.colors.soft;
    c.textAlign = "center";
    for (let i = Math.ceil(this.from / step - 1e-9); i * step <= this.to + 1e-9; i++) {
      const x = Math.round(this.x(i * step)) + 0.5;
      c.beginPath();
      c.moveTo(x, RULER - 6);
      c.lineTo(x, height);
      c.stroke();
      const text = clock(i * step, step < 1 ? 1 : 0), half = c.measureText(text).width / 2;
      c.fillText(text, Math.min(Math.max(x, this.gutter + half), this.gutter + this.width - half), 9);
    }
  }

  drawWave(sound, top, height) {
    this.drawTitle("Waveform", top + height / 2 - TITLE / 2);
    this.inside((c) => {
      const middle = top + height / 2;
      c.fillStyle = this.colors.sunk;
      c.fillRect(this.gutter, top, this.width, height);
      c.fillStyle = this.colors.wave;
      for (const tile of sound.wave.tiles) {
        const first = Math.max(0, Math.floor((this.from - tile.startS) / tile.columnS));
        const last = Math.min(tile.count, Math.ceil((this.to - tile.startS) / tile.columnS));
        const perColumn = (tile.columnS / (this.to - this.from)) * this.width;
        const together = Math.max(1, Math.floor(1 / perColumn));
        for (let i = first - (first % together); i < last; i += together) {
          let low = 127, high = -127;
          for (let k = Math.max(0, i); k < Math.min(tile.count, i + together); k++) {
            low = Math.min(low, tile.bytes[2 * k]);
            high = Math.max(high, tile.bytes[2 * k + 1]);
          }
          const y = middle - (high / 127) * (height / 2 - 2), h = Math.max(1, ((high - low) / 127) * (height / 2 - 2));
          c.fillRect(this.x(tile.startS + i * tile.columnS), y, Math.max(0.7, perColumn * together), h);
        }
      }
    });
  }

  drawMel(sound, top, height) {
    const {fmin, fmax} = this.model, mel = (f) => Math.log1p(f / 700);
    const c = this.context;
    this.drawTitle("Log-mel", top);
    c.textAlign = "right";
    c.fillStyle = this.colors.soft;
    for (const f of FREQUENCIES.filter((f) => f < fmax)) {
      const y = top + height * (1 - (mel(f) - mel(fmin)) / (mel(fmax) - mel(fmin)));
      c.fillText(f < 1000 ? `${f} Hz` : `${f / 1000} kHz`, this.gutter - 8, y);
    }
    this.inside(() => {
      c.fillStyle = this.colors.mel0;
      c.fillRect(this.gutter, top, this.width, height);
      if (!sound.mel) return;
      const [low, high] = sound.contrast();
      for (const tile of sound.mel.tiles) {
        const end = tile.startS + tile.count * tile.columnS;
        if (end < this.from || tile.startS > this.to) continue;
        this.render(tile, sound.mel.perColumn, low, high);
        const x = this.x(tile.startS), w = this.x(end) - x;
        c.imageSmoothingEnabled = w < 3 * tile.count;
        c.imageSmoothingQuality = "high";
        c.drawImage(tile.image, 0, 0, tile.count, sound.mel.perColumn, x, top, w, height);
      }
    });
  }

  render(tile, mels, low, high) {
    if (!tile.stale && tile.low === low && tile.high === high) return;
    tile.image ??= Object.assign(document.createElement("canvas"), {width: tile.bytes.length / mels, height: mels});
    const c = tile.image.getContext("2d"), data = c.createImageData(tile.count, mels);
    for (let i = 0; i < tile.count; i++) {
      for (let m = 0; m < mels; m++) {
        const level = (255 * (tile.bytes[i * mels + m] - low)) / (high - low);
        const color = this.palette[Math.max(0, Math.min(255, Math.round(level)))];
        const at = 4 * ((mels - 1 - m) * tile.count + i);
        data.data[at] = color[0]; data.data[at + 1] = color[1]; data.data[at + 2] = color[2]; data.data[at + 3] = 255;
      }
    }
    c.putImageData(data, 0, 0);
    Object.assign(tile, {stale: false, low, high});
  }

  /** A label's scores over time: for a recording those its events are made of, for a live one each window's, over its news. */
  scoresOf(sound, index) {
    const column = sound.column(index);
    if (sound.live) {
      const edges = [0, ...sound.ends];
      return {edges, scores: column};
    }
    this.grid = this.gridOf === sound && this.gridAt === sound.rows.length ? this.grid : steps(sound.starts, sound.ends, sound.hop);
    this.gridOf = sound;
    this.gridAt = sound.rows.length;
    return {edges: this.grid.edges, scores: hopScores(column, this.grid)};
  }

  drawRows(sound, rows, top) {
    const c = this.context;
    if (!rows.length) {
      this.quiet(sound.rows.length ? "nothing above 0.02" : "waiting for the first window", top + ROW / 2);
      return;
    }
    rows.forEach((row, r) => {
      const y = top + r * ROW;
      this.name(row.name, y + ROW / 2, row.color);
      const {edges, scores} = this.scoresOf(sound, row.index);
      this.areas.push({top: y, bottom: y + ROW, row, edges, scores});
      this.inside(() => {
        c.fillStyle = this.colors.sunk;
        c.fillRect(this.gutter, y + 1, this.width, ROW - 2);
        c.fillStyle = row.color;
        // One rectangle a pixel at most, of the highest score in it.
        let last = -1, best = 0, begin = 0, stop = 0;
        const flush = () => {
          if (last < 0 || best < 0.01) return;
          c.globalAlpha = Math.min(1, best ** 0.75);
          c.fillRect(begin, y + 1, Math.max(1, stop - begin), ROW - 2);
        };
        for (let i = 0; i < scores.length; i++) {
          if (edges[i + 1] < this.from || edges[i] > this.to) continue;
          const pixel = Math.max(0, Math.round(this.x(edges[i])));
          if (pixel !== last) { flush(); last = begin = pixel; best = 0; }
          best = Math.max(best, scores[i]);
          stop = Math.round(this.x(edges[i + 1]));
        }
        flush();
        c.globalAlpha = 1;
      });
    });
  }

  quiet(text, y) {
    const c = this.context;
    c.textAlign = "left";
    c.fillStyle = this.colors.soft;
    c.fillText(text, this.gutter + 4, y);
  }

  drawLanes(lanes, top, more) {
    const c = this.context;
    if (!lanes.length) this.quiet("no events at these thresholds", top + LANE / 2);
    lanes.forEach((lane, l) => {
      const y = top + l * LANE;
      this.name(lane.name, y + LANE / 2, lane.color);
      this.inside(() => {
        c.fillStyle = this.colors.sunk;
        c.fillRect(this.gutter, y + LANE / 2 - 1, this.width, 2);
        for (const event of lane.events) {
          const x = this.x(event.onset_s), w = Math.max(3, this.x(event.offset_s) - x);
          c.globalAlpha = 0.45 + 0.55 * event.peak;
          c.fillStyle = lane.color;
          c.beginPath();
          c.roundRect(x, y + 3, w, LANE - 6, 4);
          c.fill();
          c.globalAlpha = 1;
        }
      });
    });
    if (more > 0) this.quiet(`and ${more} more label${more > 1 ? "s" : ""} in the table`, top + lanes.length * LANE + LANE / 2);
  }

  /** What is under the pointer, in words. */
  under(x, y) {
    const seconds = Math.max(0, Math.min(this.seconds(x), this.length));
    const area = this.areas?.find(({top, bottom}) => y >= top && y < bottom);
    if (!area) return clock(seconds);
    let i = area.edges.findIndex((edge) => edge > seconds) - 1;
    if (i < 0) i = area.scores.length - 1;
    return `${clock(seconds)}  ${area.row.name} ${area.scores[i].toFixed(2)}`;
  }

  placePlayhead(seconds) {
    const x = this.x(seconds);
    this.playhead.hidden = x < this.gutter - 1 || x > this.gutter + this.width + 1;
    this.playhead.style.transform = `translateX(${x}px)`;
  }
}
