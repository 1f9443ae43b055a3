"""The bare loop that the appliance is measured against: one plain process, nothing isolated, nothing kept.

JPEG in memory -> decode and resize -> the same runtime and model -> JSON -> paho publish. It decodes and resizes
with the very function the appliance uses, so that the work is equal.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho

from appliance.inference.messages import View
from appliance.inference.preprocessing import PictureInput
from appliance.inference.runtime import Model, Runtime
from appliance.ipc.ring import FrameRef

TOPIC = "bare/result"


def main(port: int, model_path: str, jpeg_path: str, frames: int, rate: float) -> None:
    """Handle ``frames`` frames, ``rate`` a second (0: as fast as it goes)."""
    jpeg = Path(jpeg_path).read_bytes()
    model = load(Path(model_path))
    picture = PictureInput(model.inputs)
    tensor = picture.buffer()
    reference = FrameRef(0, 0, len(jpeg), "jpeg", 640, 480)
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.max_inflight_messages_set(0)
    client.connect("127.0.0.1", port)
    client.loop_start()
    last = None
    due = time.perf_counter()
    for seq in range(frames):
        if rate:
            due += 1 / rate
            time.sleep(max(0.0, due - time.perf_counter()))
        captured = time.time_ns()
        picture.fill(tensor, memoryview(jpeg), reference, View())
        scores = np.frombuffer(model.run([tensor])[0], np.uint8)
        top = scores.argsort()[-3:][::-1]
        value = {"label": int(top[0]), "top": [[int(index), float(scores[index]) / 256] for index in top]}
        last = client.publish(TOPIC, json.dumps({"seq": seq, "captured_ns": captured, "value": value}), qos=1)
    if last is not None:
        last.wait_for_publish(30)
    client.loop_stop()


def load(path: Path) -> Model:
    return Runtime("litert").load(path.read_bytes(), threads=1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
