"""A source whose pictures are in memory already: what it sends is one JPEG, over and over."""

import asyncio
import sys
import time
from pathlib import Path

from appliance.client import local_address
from appliance.device.state import open_state
from appliance.frame import Frame
from appliance.transport.peer import join
from appliance.wire import PROTOCOL_VERSION, Hello


async def main(state: str, jpeg_path: str, frames: int, rate: float) -> None:
    """Send ``frames`` frames, lossless; ``rate`` a second (0: as fast as credit allows)."""
    jpeg = Path(jpeg_path).read_bytes()
    directory = open_state(state)
    hello = Hello(PROTOCOL_VERSION, "source", "memory", directory.local_credential(), emits=(1,), lossless=True)
    async with join(local_address(directory), hello) as peer:
        granted = peer.credits
        due = time.perf_counter()
        for seq in range(frames):
            if rate:
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await peer.credit()
            peer.send_now(Frame(1, "memory", seq, time.time_ns(), "jpeg", jpeg, 640, 480))
        async with asyncio.timeout(60):
            await peer.settled(granted)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
