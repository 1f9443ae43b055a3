"""Stands in for a model's process and misbehaves as its first argument says."""

import os
import signal
import socket
import sys
import time

from appliance.frame import ModelRun
from appliance.inference.messages import Failed, GetPixels, Infer, Outputs, Pixels, Ready, TensorInfo, ToModel
from appliance.ipc.packets import BlockingChannel

RUN = ModelRun("double.tflite", "0" * 64, "double 1.0", "cpu")
BYTES = TensorInfo("bytes", "uint8", (1, 4), 4, 0.0, 0)
READY = Ready(RUN, [BYTES], [BYTES])
STEERS = "a\nb\x1b[2Jc" * 1000
TERMINAL = Ready(ModelRun("double.tflite", "0" * 64, STEERS, "cpu\n"), [BYTES], [BYTES], STEERS)


def misbehave(behaviour: str, channel: BlockingChannel[ToModel], sock: socket.socket) -> None:
    before_ready = {
        "has 17 inputs": lambda: channel.send(Ready(RUN, [BYTES] * 17, [BYTES])),
        "has 9 dimensions": lambda: channel.send(Ready(RUN, [TensorInfo("", "uint8", (1,) * 9, 1, 0.0, 0)], [BYTES])),
        "shows its environment": lambda: sys.exit(" ".join(sorted(os.environ))),
        "silent": lambda: time.sleep(3600),
        "says that the device cannot": lambda: channel.send(Failed(0, "device", "no such runtime")),
        "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "says why not": lambda: channel.send(Failed(0, "model", "no such thing")),
        "garbage": lambda: sock.send(b"\x00garbage"),
        "exits": lambda: sys.exit("out of memory at 0x0"),
        "aborts": lambda: os.kill(os.getpid(), signal.SIGABRT),
        "closes": lambda: (sock.close(), time.sleep(3600)),
        "chatters": lambda: sys.stderr.write("noise\n" * 500_000 + "INFO: fine\nand then it broke\n") and sys.exit(3),
    }
    if behaviour in before_ready:
        before_ready[behaviour]()
        return
    channel.send(TERMINAL if behaviour == "steers a terminal" else READY)
    if behaviour == "says ready twice":
        channel.send(READY)
    if behaviour == "answers nobody":
        channel.send(Outputs(77, [b"1234"], 0, 0))
    while (request := channel.receive()) is not None:
        if isinstance(request, Infer | GetPixels) and (answer := answer_to(request.id, behaviour)) is not None:
            channel.send(answer)


def answer_to(id: int, behaviour: str) -> Outputs | Pixels | Failed | None:
    if behaviour == "dies when asked":
        os.kill(os.getpid(), signal.SIGSEGV)
    return {
        "answers with too little": Outputs(id, [b"123"], 0, 0),
        "takes for ever": Outputs(id, [b"good"], 0, 1 << 60),
        "sends many": Outputs(id, [b""] * 17, 0, 0),
        "steers a terminal": Failed(id, "model", STEERS),
        "answers with pixels": Pixels(id, b"1234"),
        "blames nobody known": Failed(id, "weather", "it rained"),
        "answers every other": Outputs(id, [b"good"], 10, 20) if id % 2 else None,
        "never answers": None,
    }.get(behaviour, Outputs(id, [b"good"], 10, 20))


if __name__ == "__main__":
    sock = socket.socket(fileno=int(sys.argv[3]))
    misbehave(sys.argv[1], BlockingChannel(sock, ToModel), sock)
