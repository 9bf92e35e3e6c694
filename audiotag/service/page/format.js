// How times and numbers are written, and files of events for other programs.

/** m:ss.s, with hours before where there are any. */
export function clock(seconds, decimals = 1) {
  const scale = 10 ** decimals, ticks = Math.round(seconds * scale);
  const whole = Math.floor(ticks / scale), fraction = ticks % scale;
  const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60, rest = String(whole % 60).padStart(2, "0");
  const tail = decimals ? `.${String(fraction).padStart(decimals, "0")}` : "";
  return (hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes) + `:${rest}${tail}`;
}

/** A number as Python writes it: 2.0 rather than 2. */
const plain = (x) => (Number.isInteger(x) ? x.toFixed(1) : String(x));

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** As `audiotag events --format csv`. */
export function csvOf(record) {
  const rows = [["source", "onset_s", "offset_s", "label", "peak", "mean", "index", "mid", "error"]];
  for (const e of record.events) {
    rows.push([record.source, plain(e.onset_s), plain(e.offset_s), e.label, plain(e.peak), plain(e.mean), String(e.index), e.mid, ""]);
  }
  return rows.map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

/** As `audiotag events --format audacity`: a label track. */
export const audacityOf = (record) =>
  record.events.map((e) => `${e.onset_s.toFixed(6)}\t${e.offset_s.toFixed(6)}\t${e.label}\n`).join("");

export function download(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], {type}));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** An element with properties and children; text is always text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
