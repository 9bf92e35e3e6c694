// Reads cases from stdin, writes what the page's own modules make of them: for test_service_page_events.py.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const page = pathToFileURL(process.argv[2] + "/");
const {findEvents, Tracker, shortest} = await import(new URL("events.js", page));
const {csvOf, audacityOf, clock} = await import(new URL("format.js", page));
const cases = JSON.parse(readFileSync(0, "utf8"));
const rowsOf = (one) => one.scores.map((row) => Float32Array.from(row));

const out = cases.map((one) => {
  if (one.kind === "shortest") return one.values.map((x) => shortest(Math.fround(x)));
  if (one.kind === "clock") return one.values.map((x) => clock(x));
  if (one.kind === "csv") return csvOf(one.record);
  if (one.kind === "audacity") return audacityOf(one.record);
  const rows = rowsOf(one);
  if (one.kind === "events") {
    const columns = new Map(rows[0].length ? [...rows[0].keys()].map((i) => [i, Float32Array.from(rows, (row) => row[i])]) : []);
    return findEvents(columns, one.starts, one.ends, one.hop, one.options);
  }
  const tracker = new Tracker(rows[0].length, one.rate, one.options), found = [];
  rows.forEach((row, w) => found.push(tracker.update(one.starts[w], one.ends[w], row)));
  return {windows: found, closed: tracker.close()};
});
process.stdout.write(JSON.stringify(out));
