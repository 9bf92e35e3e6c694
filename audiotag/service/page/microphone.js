// The microphone: samples as the device gives them, at its own rate; what browsers do to make speech clearer is off.

export const AS_IT_SOUNDS = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};

/** Why the microphone cannot be had, in words for the person before the screen; null if it may be. */
export function whyNot() {
  if (!window.isSecureContext) {
    return `Browsers give the microphone only to pages on https:// or on localhost, and this page came from ` +
      `${location.origin} without encryption. Open it on the machine that serves it, as http://localhost, or put it behind ` +
      `https:// (docs/serve.md says how).`;
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return "This browser cannot record sound.";
  return null;
}

export function explain(error) {
  const words = {
    NotAllowedError: "The microphone was not allowed. The browser's address bar has a switch for it.",
    NotFoundError: "There is no microphone.",
    NotReadableError: "The microphone is in use by another program.",
    OverconstrainedError: "That microphone is gone; choose another.",
  };
  return words[error.name] || `The microphone cannot be opened: ${error.message}`;
}

export async function devices() {
  if (!navigator.mediaDevices?.enumerateDevices) return [];
  return (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "audioinput");
}

/** Open a microphone; `take` gets Float32Arrays of mono samples. Has `rate`, `label` and `close()`. */
export async function open(deviceId, take) {
  const device = deviceId ? {deviceId: {exact: deviceId}} : {};
  const media = await navigator.mediaDevices.getUserMedia({audio: {...AS_IT_SOUNDS, channelCount: {ideal: 1}, ...device}});
  const track = media.getAudioTracks()[0];
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule("/page/capture.js");
  } catch (error) {
    track.stop();
    throw error;
  }
  const source = context.createMediaStreamSource(media);
  const node = new AudioWorkletNode(context, "capture", {numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit"});
  node.port.onmessage = ({data}) => take(data);
  source.connect(node);
  await context.resume();
  return {
    rate: context.sampleRate,
    label: track.label || "Microphone",
    onended: (then) => { track.onended = then; },
    async close() {
      source.disconnect();
      track.stop();
      await context.close();
    },
  };
}

/** A WAV file (16 bit, mono) of chunks of samples, to play back what was heard. */
export function wavOf(chunks, rate) {
  const count = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const chunk of chunks) {
    for (const x of chunk) { view.setInt16(at, Math.max(-32768, Math.min(32767, Math.round(x * 32768))), true); at += 2; }
  }
  return new Blob([view], {type: "audio/wav"});
}
