// The service: requests, their lines as they come, and live streams.

export class Refused extends Error {
  constructor(status, title, detail) { super(detail || title); this.status = status; this.title = title; }
}

let token = sessionStorage.getItem("audiotag-token") || "";

export function setToken(text) {
  token = text;
  sessionStorage.setItem("audiotag-token", text);
}

/** The token's UTF-8 bytes, each as a character: what headers and base64 take. */
const tokenBytes = () => String.fromCharCode(...new TextEncoder().encode(token));

const headers = () => (token ? {Authorization: `Bearer ${tokenBytes()}`} : {});

async function checked(response) {
  if (response.ok) return response;
  let plain = {};
  try { plain = await response.json(); } catch { /* not ours */ }
  throw new Refused(response.status, plain.title || `Error ${response.status}`, plain.detail || plain.status);
}

export const getJson = async (path) => (await checked(await fetch(path, {headers: headers()}))).json();

/** Send a file; `take` gets each line of the answer as it comes. */
export async function analyze(file, parameters, take, signal) {
  const form = new FormData();
  form.append("file", file, file.name);
  const query = new URLSearchParams(parameters);
  const response = await checked(await fetch(`/v1/analyze?${query}`, {method: "POST", body: form, headers: headers(), signal}));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) take(JSON.parse(line));
  }
  if (rest.trim()) take(JSON.parse(rest));
}

/** A live stream; `take` gets each message. */
export function openStream(start, take) {
  const protocols = ["audiotag.v1"];
  if (token) {
    protocols.push("bearer." + btoa(tokenBytes()).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""));
  }
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/stream`, protocols);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => socket.send(JSON.stringify({type: "start", ...start}));
  socket.onmessage = ({data}) => take(JSON.parse(data));
  socket.onclose = ({code}) => take({type: "closed", code});
  return socket;
}

export function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Rows of float32 in base64. */
export function rowsOf(base64, nLabels) {
  const bytes = bytesOf(base64), rows = [];
  const view = new DataView(bytes.buffer);
  for (let start = 0; start < bytes.length; start += 4 * nLabels) {
    const row = new Float32Array(nLabels);
    for (let i = 0; i < nLabels; i++) row[i] = view.getFloat32(start + 4 * i, true);
    rows.push(row);
  }
  return rows;
}
