// Tags audio with a model that `audiotag export` wrote, in onnxruntime-web (a browser) or its wasm build under Node.

/** What the model says of itself: labels, sample rate, window. `bytes` is the content of model.onnx, a Uint8Array.
 *  onnxruntime-web does not hand these on, so they are read here: field 14 of the file, pairs of key and value. */
export function metadata(bytes) {
  const found = {};
  for (const [field, value] of fields(bytes)) {
    if (field !== 14) continue;
    const pair = Object.fromEntries(fields(value));
    found[new TextDecoder().decode(pair[1])] = new TextDecoder().decode(pair[2]);
  }
  return {
    labels: JSON.parse(found.labels),
    sampleRate: Number(found.sample_rate_hz),
    windowSamples: Number(found.window_samples),
  };
}

/** Number and content of each field of a protobuf message; numbers as they are, the rest as bytes. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0, scale = 1, byte;
    do {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    return value;
  };
  while (at < bytes.length) {
    const key = varint();
    const wire = key % 8;
    if (wire === 0) yield [Math.floor(key / 8), varint()];
    else {
      const length = wire === 2 ? varint() : wire === 5 ? 4 : 8;
      yield [Math.floor(key / 8), bytes.subarray(at, at + length)];
      at += length;
    }
  }
}

/** Windows (Float32Array) of mono samples: a short recording is repeated to fill one, the last of a long one ends with it. */
export function windows(samples, size) {
  if (samples.length < size) return [Float32Array.from({ length: size }, (_, i) => samples[i % samples.length])];
  const starts = [];
  for (let start = 0; start + size < samples.length; start += size) starts.push(start);
  starts.push(samples.length - size);
  return starts.map((start) => samples.slice(start, start + size));
}

/** Scores (Float32Array, one for each label) of mono samples: the highest over the windows, as `audiotag tag` gives. */
export async function tag(ort, session, samples, size) {
  let best = null;
  for (const window of windows(samples, size)) {
    const input = new ort.Tensor("float32", window, [1, size]);
    const { scores } = await session.run({ waveform: input }, ["scores"]);
    best = best ? best.map((score, i) => Math.max(score, scores.data[i])) : Float32Array.from(scores.data);
  }
  return best;
}
