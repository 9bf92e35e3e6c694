// One recording or live session: its windows' scores, and its waveform and log-mel as columns.

import {Tracker, findEvents, offOf} from "./events.js";

const TILE_COLUMNS = 2048;
export const LEAST = 0.02; // scores below are never shown

/** Columns of bytes, in tiles of one width each. */
class Tiles {
  constructor(perColumn) { this.perColumn = perColumn; this.tiles = []; }

  add(startS, columnS, bytes) {
    const size = this.perColumn;
    for (let at = 0; at < bytes.length;) {
      let tile = this.tiles[this.tiles.length - 1];
      if (!tile || tile.count === TILE_COLUMNS || tile.columnS !== columnS) {
        tile = {startS: startS + (at / size) * columnS, columnS, count: 0, bytes: new bytes.constructor(TILE_COLUMNS * size)};
        this.tiles.push(tile);
      }
      const n = Math.min(TILE_COLUMNS - tile.count, (bytes.length - at) / size);
      tile.bytes.set(bytes.subarray(at, at + n * size), tile.count * size);
      tile.count += n;
      tile.stale = true;
      at += n * size;
    }
  }
}

export class Sound {
  constructor(name, nLabels, {hop, rate = 32000, live = false}) {
    Object.assign(this, {name, nLabels, hop, rate, live, duration: 0, expected: null, done: false, record: null, error: null});
    this.file = this.blob = null;
    this.warnings = [];
    this.starts = [];
    this.ends = [];
    this.rows = [];
    this.best = new Float32Array(nLabels);
    this.power = new Float64Array(nLabels);
    this.mel = null;
    this.wave = new Tiles(2);
    this.histogram = new Float64Array(256);
  }

  addWindow(start, end, row) {
    this.starts.push(start);
    this.ends.push(end);
    this.rows.push(row);
    this.duration = Math.max(this.duration, end);
    for (let i = 0; i < row.length; i++) {
      if (row[i] > this.best[i]) this.best[i] = row[i];
      this.power[i] += row[i] * row[i];
    }
  }

  addMel(startS, columnS, mels, levels) {
    this.mel ??= new Tiles(mels);
    this.mel.add(startS, columnS, levels);
    for (const level of levels) this.histogram[level]++;
  }

  addWave(startS, columnS, extremes) { this.wave.add(startS, columnS, extremes); }

  /** Levels drawn as the darkest and the brightest: quiet frames and rare peaks do not set the contrast. */
  contrast() {
    const total = this.histogram.reduce((a, b) => a + b, 0);
    let sum = 0, low = 0, high = 255;
    for (let i = 0, set = false; i < 256; i++) {
      sum += this.histogram[i];
      if (!set && sum >= 0.05 * total) { low = i; set = true; }
      if (sum >= 0.998 * total) { high = i; break; }
    }
    return [low, Math.max(high, low + 16)];
  }

  column(index) {
    const column = new Float32Array(this.rows.length);
    for (let w = 0; w < column.length; w++) column[w] = this.rows[w][index];
    return column;
  }

  /** The label indices that are up the most, best first. */
  strongest(count, chosen) {
    const indices = [];
    for (let i = 0; i < this.nLabels; i++) if (this.best[i] >= LEAST && (!chosen || chosen.has(i))) indices.push(i);
    return indices.sort((a, b) => this.power[b] - this.power[a]).slice(0, count);
  }

  /** Events at these thresholds; of a live session, those its stream gives. */
  events({on, off, minDuration, maxGap}, chosen) {
    if (!this.rows.length) return [];
    const settings = {on, off: off ?? offOf(on), minDuration, maxGap};
    const wanted = (index) => !chosen || chosen.has(index);
    if (!this.live) {
      const columns = new Map();
      for (let i = 0; i < this.nLabels; i++) {
        if (wanted(i) && this.best[i] >= Math.fround(on)) columns.set(i, this.column(i));
      }
      return findEvents(columns, this.starts, this.ends, this.hop, settings);
    }
    const tracker = new Tracker(this.nLabels, this.rate, settings);
    const found = [];
    this.rows.forEach((row, w) => {
      const {ended} = tracker.update(Math.round(this.starts[w] * this.rate), Math.round(this.ends[w] * this.rate), row);
      found.push(...ended);
    });
    found.push(...(this.done ? tracker.close() : tracker.open()));
    return found.filter((event) => wanted(event.index)).sort((a, b) => a.onset_s - b.onset_s || a.index - b.index);
  }

  /** Scores at a time, or of the whole: the highest of each label. */
  scoresAt(time) {
    if (time === null || !this.rows.length) return this.best;
    let nearest = 0, distance = Infinity;
    for (let w = 0; w < this.rows.length; w++) {
      const far = Math.abs((this.starts[w] + this.ends[w]) / 2 - time);
      if (far < distance) { distance = far; nearest = w; }
    }
    return this.rows[nearest];
  }

  /** When window w's news begins and ends: all of it, or the hop that it adds. */
  get length() { return Math.max(this.duration, this.live ? 0 : this.expected || 0); }
}
