// Events out of scores: what audiotag.results.events and audiotag.live.tracker do, number for number, so that
// thresholds act at once. Scores are float32; thresholds are compared in float32.

const FLOOR = 1e-6;

/** The shortest decimal that reads back as the same float32. */
export function shortest(score) {
  const exact = Math.fround(score);
  for (let digits = 1; digits < 10; digits++) {
    const short = Number(exact.toPrecision(digits));
    if (Math.fround(short) === exact) return short;
  }
  return exact;
}

export const offOf = (on) => Math.fround(Math.fround(on) * 0.5);

/** First index in an ascending array whose value is at least x, or with `after`, above it. */
function search(array, x, after = false) {
  let low = 0, high = array.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (after ? array[middle] <= x : array[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The steps of a recording: their edges in seconds, and which windows cover the middle of each. */
export function steps(starts, ends, hop) {
  const duration = ends[ends.length - 1];
  const count = Math.max(1, Math.ceil(duration / hop - 1e-6));
  const edges = new Float64Array(count + 1);
  for (let i = 0; i <= count; i++) edges[i] = Math.min(i * hop, duration);
  edges[count] = duration;
  const first = new Int32Array(count), last = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    const middle = (edges[i] + edges[i + 1]) / 2;
    first[i] = search(ends, middle);
    last[i] = search(starts, middle, true);
  }
  return {edges, first, last};
}

/** One label's scores per step: the geometric mean of the windows over it. `column[w]` is window w's score. */
export function hopScores(column, {first, last}) {
  const logs = new Float64Array(column.length + 1);
  const out = new Float32Array(first.length);
  for (let w = 0; w < column.length; w++) logs[w] = Math.log(Math.max(column[w], FLOOR));
  for (let i = 0; i < first.length; i++) {
    let sum = 0;
    for (let w = first[i]; w < last[i]; w++) sum += logs[w];
    out[i] = Math.exp(sum / (last[i] - first[i]));
  }
  return out;
}

/** Stretches of one label: [{first, last}] in steps, by hysteresis, gaps filled, short ones dropped. */
function spans(scores, edges, {on, off, minDuration = 0, maxGap = 0}) {
  const up = Math.fround(on), down = Math.fround(off);
  let runs = [];
  for (let i = 0; i < scores.length; i++) {
    if (scores[i] < down) continue;
    const first = i;
    let reaches = false;
    for (; i < scores.length && scores[i] >= down; i++) reaches ||= scores[i] >= up;
    if (reaches) runs.push({first, last: i});
  }
  runs = runs.reduce((kept, run) => {
    const before = kept[kept.length - 1];
    if (before && edges[run.first] - edges[before.last] <= maxGap + 1e-9) before.last = run.last;
    else kept.push(run);
    return kept;
  }, []);
  return runs.filter(({first, last}) => edges[last] - edges[first] >= minDuration - 1e-9);
}

/**
 * A recording's events, as `Prediction.events` gives them.
 * columns: Map from label index to its windows' scores (Float32Array).
 */
export function findEvents(columns, starts, ends, hop, options) {
  const settings = {...options, off: options.off ?? offOf(options.on)};
  const grid = steps(starts, ends, hop), {edges} = grid;
  const found = [];
  for (const [index, column] of columns) {
    if (!column.some((score) => score >= Math.fround(settings.on))) continue;
    const scores = hopScores(column, grid);
    for (const {first, last} of spans(scores, edges, settings)) {
      let peak = 0, sum = 0;
      for (let i = first; i < last; i++) {
        peak = Math.max(peak, scores[i]);
        sum += scores[i] * (edges[i + 1] - edges[i]);
      }
      const mean = Math.min(sum / (edges[last] - edges[first]), peak);
      found.push({index, onset_s: edges[first], offset_s: edges[last], peak: shortest(peak), mean: shortest(mean)});
    }
  }
  return found.sort((a, b) => a.onset_s - b.onset_s || a.index - b.index);
}

const RECOGNITION_S = 1;

/** A live stream's events, as `audiotag.live.tracker.EventTracker` gives them; times are counted in samples. */
export class Tracker {
  constructor(nLabels, rate, {on, off, minDuration = 0, maxGap = 2}) {
    this.on = Math.fround(on);
    this.off = off === undefined || off === null ? offOf(on) : Math.fround(off);
    this.rate = rate;
    this.minDuration = Math.round(minDuration * rate);
    this.maxGap = Math.round(maxGap * rate);
    this.recognition = Math.round(RECOGNITION_S * rate);
    this.previousStop = 0;
    this.labels = Array.from({length: nLabels}, () => ({
      up: false, reported: false, low: true, rise: 0, onset: 0, firstStop: 0, lastStop: 0, offset: 0,
      peak: 0, sum: 0, count: 0, eventSum: 0, eventCount: 0,
    }));
  }

  /** Take a window (samples): what starts and what ends with it. */
  update(start, stop, scores) {
    const started = [], ended = [];
    this.labels.forEach((label, index) => {
      const score = scores[index];
      const high = score >= this.on, low = score < this.off;
      const fresh = high && !label.up;
      if (fresh) label.up = true;
      if (label.low) label.rise = this.previousStop;
      label.low = low;
      if (fresh) {
        label.onset = Math.max(label.rise - this.recognition, start, label.offset);
        label.firstStop = stop;
        label.peak = label.sum = label.count = 0;
      }
      if (!label.up) return;
      label.sum += score;
      label.count++;
      if (low) {
        if (label.lastStop === this.previousStop) label.offset = Math.max(start, label.firstStop);
        if (stop - label.lastStop > this.maxGap || !label.reported) {
          if (label.reported) ended.push(this.event(label, index));
          label.up = label.reported = false;
        }
        return;
      }
      label.lastStop = stop;
      label.peak = Math.max(label.peak, score);
      label.eventSum = label.sum;
      label.eventCount = label.count;
      if (!label.reported && stop - label.firstStop >= this.minDuration) {
        label.reported = true;
        started.push({index, onset_s: label.onset / this.rate, score: shortest(score)});
      }
    });
    this.previousStop = stop;
    started.sort((a, b) => b.score - a.score);
    ended.sort((a, b) => a.onset_s - b.onset_s);
    return {started, ended};
  }

  /** End what is open. */
  close() {
    const ended = [];
    this.labels.forEach((label, index) => {
      if (label.up && label.lastStop === this.previousStop) label.offset = this.previousStop;
      if (label.up && label.reported) ended.push(this.event(label, index));
      label.up = label.reported = false;
    });
    return ended.sort((a, b) => a.onset_s - b.onset_s);
  }

  /** What is up now, as events that last until now. */
  open() {
    return this.labels.flatMap((label, index) =>
      label.up && label.reported ? [{...this.event(label, index), offset_s: this.previousStop / this.rate, open: true}] : []);
  }

  event(label, index) {
    return {
      index, onset_s: label.onset / this.rate, offset_s: label.offset / this.rate,
      peak: shortest(label.peak), mean: shortest(label.eventSum / label.eventCount),
    };
  }
}
