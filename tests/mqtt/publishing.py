"""Frames and publishers for the tests; run as a program, a publisher that is there to be killed."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2

from appliance.backoff import Backoff
from appliance.config import MqttConfig
from appliance.frame import Frame, ModelRun, Producer
from appliance.publisher import Publisher

RUN = ModelRun("parts", "ab" * 32, "litert 2.3.0", "cpu")
MESSAGES = 1_000_000


def frame(seq: int, payload: bytes | None = None, **changes: Any) -> Frame:
    fields: dict[str, Any] = {
        "format": "cbor",
        "payload": cbor2.dumps({"label": "ok"}) if payload is None else payload,
        "spent": {"capture": 1000, "wire": 500},
        "producer": Producer("parts", "1.0.0", (RUN,)),
        **changes,
    }
    return Frame(tag=16, source="camera", seq=seq, captured_ns=time.time_ns(), **fields)


def quick() -> Backoff:
    return Backoff(0.02, 1.5, 0.2)


def publisher(url: str, spool: Path, /, *, retry_refused: Backoff | None = None, **config: Any) -> Publisher:
    extra: Callable[[], dict[str, Any]] = config.pop("extra", dict)
    also: tuple[str, ...] = config.pop("also", ())
    drain_seconds: float = config.pop("drain_seconds", 5.0)
    settings = MqttConfig(url=url, **config)
    return Publisher(
        settings,
        "box",
        spool,
        also=also,
        extra=extra,
        drain_seconds=drain_seconds,
        retry=quick(),
        retry_refused=retry_refused or quick(),
    )


class Answers:
    """Collects what ``offer`` answers."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.refused: list[int] = []
        self._news = asyncio.Event()

    def of(self, seq: int) -> Callable[[bool], None]:
        def answer(ok: bool) -> None:
            (self.accepted if ok else self.refused).append(seq)
            self._news.set()

        return answer

    async def count(self, number: int, seconds: float = 15.0) -> None:
        """Wait until so many have been answered."""
        async with asyncio.timeout(seconds):
            while len(self.accepted) + len(self.refused) < number:
                self._news.clear()
                await self._news.wait()


def seqs(payloads: list[bytes]) -> list[int]:
    return [json.loads(payload)["seq"] for payload in payloads]


def in_order(numbers: list[int]) -> bool:
    """Whether each number came first before any greater one, whatever came again."""
    firsts = list(dict.fromkeys(numbers))
    return firsts == sorted(firsts)


async def publish_until_killed(url: str, spool: Path, first: int) -> None:
    """Offers results for ever and prints the number of each accepted one."""

    def answer(seq: int) -> Callable[[bool], None]:
        return lambda ok: print(seq, flush=True) if ok else None  # noqa: T201

    async with publisher(url, spool) as publishing:
        publishing.set_retained(publishing.topics.status, {"state": "ready"})
        for seq in range(first, first + MESSAGES):
            publishing.offer(frame(seq), answer(seq))
            await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(publish_until_killed(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
