"""What the composition root keeps of what passes through it; the whole of it runs in tests/system."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from appliance.app import Appliance
from appliance.config import Config
from appliance.device.state import open_state
from appliance.frame import Frame, Producer


async def test_of_who_is_gone_no_last_result_is_kept(tmp_path: Path) -> None:
    appliance: Any = Appliance(Config(), open_state(str(tmp_path)))
    appliance.publisher = SimpleNamespace(offer=lambda *_: None)
    appliance.serving = SimpleNamespace(live={"parts": None})
    appliance.door = SimpleNamespace(sessions={(False, "doorbell"): None})
    for name in ("parts", "doorbell", *(f"gone-{number}" for number in range(100))):
        frame = Frame(0x40, "camera", 0, 0, "json", b"{}", producer=Producer(name, "1.0.0"))
        appliance._publish(SimpleNamespace(frame=frame))
    appliance._publish(SimpleNamespace(frame=Frame(0x40, "camera", 0, 0, "json", b"{}")))
    measured = asyncio.Event()

    async def measure() -> None:
        measured.set()

    appliance._measure = measure
    measuring = asyncio.create_task(appliance._keep_measuring())
    await measured.wait()
    measuring.cancel()
    await asyncio.wait([measuring])
    assert list(appliance.last) == ["parts", "doorbell", ""]
