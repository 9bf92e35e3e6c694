// node web_scores.mjs <onnxruntime-web's folder> <model.onnx> <float32 samples>: their scores and the labels, as JSON.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { metadata, tag } from "../examples/web/tag.mjs";

const [folder, model, sound] = process.argv.slice(2);
const ort = await import(pathToFileURL(join(folder, "dist", "ort.wasm.min.mjs")));
ort.env.wasm.numThreads = 1;
const bytes = new Uint8Array(readFileSync(model));
const content = readFileSync(sound);
const samples = new Float32Array(content.buffer.slice(content.byteOffset, content.byteOffset + content.length));
const { labels, sampleRate, windowSamples } = metadata(bytes);
const session = await ort.InferenceSession.create(bytes);
const started = performance.now();
const scores = await tag(ort, session, samples, windowSamples);
const ms = performance.now() - started;
console.log(JSON.stringify({ labels, sampleRate, windowSamples, scores: [...scores], ms }));
