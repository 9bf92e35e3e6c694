"""Tag a 10 s recording with onnxruntime alone: no audiotag, no torch.

    audiotag export -o model.onnx
    python examples/run_onnx.py model.onnx street.wav

The recording must have the model's sample rate (32,000 Hz for most); longer ones are better cut into windows of 10 s.
"""

import json
import sys

import onnxruntime
import soundfile

session = onnxruntime.InferenceSession(sys.argv[1])
samples = soundfile.read(sys.argv[2], dtype="float32", always_2d=True)[0].mean(1)
scores = session.run(["scores"], {"waveform": samples[None]})[0][0]
labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
print(sorted(zip(scores.tolist(), labels, strict=True), reverse=True)[:5])
