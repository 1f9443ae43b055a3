"""The model that comes with the project, on the synthetic conveyor: no other data is needed."""

from pathlib import Path

import numpy as np
from pictures import write

from appliance.camera.synthetic import Conveyor
from appliance.inference.broker import Broker
from appliance.inference.messages import View
from appliance.inference.model import ModelSpec, digest_of
from appliance.ipc.ring import RingWriter

PARTS = Path(__file__).parents[2] / "handlers" / "parts"
FRAMES = range(0, 400, 10)


async def test_parts_are_told_apart(ring: RingWriter, runtime: str) -> None:
    path = PARTS / "parts.tflite"
    spec = ModelSpec(path, digest_of(path), runtime)
    labels = (PARTS / "labels.txt").read_text().split()
    conveyor = Conveyor(640, 480, seed=9000)
    right, seen = 0, set()
    async with Broker(ring.fd) as broker:
        (output,) = (await broker.ready(spec)).outputs
        for number in FRAMES:
            frame = write(ring, conveyor.draw(number), "jpeg")
            inference = await broker.infer(spec, frame, View())
            ring.free(frame)
            label = labels[int(np.frombuffer(inference.tensors[0], output.dtype).argmax())]
            right += label == conveyor.truth(number)
            seen.add(label)
    assert right >= 0.9 * len(FRAMES)
    assert len(seen) >= 3
