"""An attacker who owns the broker, and an operator who does not know: their moves interleaved as they come."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from fleet_double import Fleet, chunks_of, messages
from hostile_scene import CHUNK, QUICK, TOPICS, HostileScene, quick
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory_broker import Message

from appliance.deploy import machine

NAMES = st.sampled_from(["detector", "counter"])
PICK = st.integers(0, 10_000)


class Attack(RuleBasedStateMachine):
    """What holds at all times is ``HostileScene.check``."""

    @initialize()
    def begin(self) -> None:
        memory = Path("/dev/shm")
        self.directory = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.stack.enter_context(quick())
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(machine, "TRIAL_BOOTS", 1 << 20)  # else :meth:`restarts` would have versions rolled back, rightly
        self.scene = HostileScene(self.directory)
        self.foreign = Fleet()
        self.foreign.deploy("box", {"detector": self.foreign.bundle("detector", "6.6.6")})
        for _ in range(3):
            self.foreign.publish()
        self.heard: list[tuple[str, bytes]] = []
        self.version = 0
        self.do(self._deploy("detector"))
        self.start()

    def do(self, work: Awaitable[None]) -> None:
        async def ending() -> None:
            async with asyncio.timeout(30):
                await work
                await asyncio.sleep(3 * QUICK)

        self.runner.run(ending())

    def start(self) -> None:
        self.box = self.scene.box()
        self.do(self.box.__aenter__())

    async def _deploy(self, name: str) -> None:
        self.version += 1
        self.scene.deploy({name: f"1.{self.version}.0"}, says=bytes(self.version * 500))
        self.heard = [*self.heard, *self.scene.broker.honest.items()]

    # the operator

    @rule(name=NAMES)
    def deploys(self, name: str) -> None:
        self.do(self._deploy(name))

    @rule(role=st.sampled_from(["root", "timestamp", "snapshot", "targets"]))
    def rotates(self, role: str) -> None:
        self.scene.fleet.rotate(role)
        self.do(self._deploy("detector"))

    # the power

    @rule()
    def restarts(self) -> None:
        self.do(self.box.__aexit__(None, None, None))
        self.start()

    # the attacker

    def _lie(self, pick: int, change: Callable[[bytes], bytes]) -> None:
        topics = sorted(self.scene.broker.honest)
        topic = topics[pick % len(topics)]

        async def lie() -> None:
            self.scene.broker.lie(topic, change(self.scene.broker.honest[topic]))

        self.do(lie())

    @rule(pick=PICK, at=PICK, bit=st.integers(0, 7))
    def flips(self, pick: int, at: int, bit: int) -> None:
        def flip(data: bytes) -> bytes:
            where = at % len(data)
            return data[:where] + bytes([data[where] ^ 1 << bit]) + data[where + 1 :]

        self._lie(pick, flip)

    @rule(pick=PICK, keep=PICK)
    def truncates(self, pick: int, keep: int) -> None:
        self._lie(pick, lambda data: data[: keep % (len(data) + 1)])

    @rule(pick=PICK, more=st.sampled_from([b"x", bytes(CHUNK), bytes(64 << 10)]))
    def extends(self, pick: int, more: bytes) -> None:
        self._lie(pick, lambda data: data + more)

    @rule(pick=PICK, other=PICK)
    def swaps(self, pick: int, other: int) -> None:
        payloads = sorted(self.scene.broker.honest.values())
        self._lie(pick, lambda _: payloads[other % len(payloads)])

    @rule(pick=PICK)
    def withholds(self, pick: int) -> None:
        topics = sorted(self.scene.broker.honest)
        self.scene.broker.lies[topics[pick % len(topics)]] = None

    @rule(pick=PICK)
    def replays(self, pick: int) -> None:
        topic, payload = self.heard[pick % len(self.heard)]

        async def replay() -> None:
            self.scene.broker.lie(topic, payload)

        self.do(replay())

    @rule(pick=PICK)
    def brings_another_fleet(self, pick: int) -> None:
        messages_ = sorted(messages(self.foreign, TOPICS, CHUNK).items())
        topic, payload = messages_[pick % len(messages_)]

        async def bring() -> None:
            self.scene.broker.lie(topic, payload)

        self.do(bring())

    @rule(count=st.sampled_from([1, 600]), role=st.sampled_from(["junk", "root", "targets"]))
    def floods(self, count: int, role: str) -> None:
        async def flood() -> None:
            for number in range(count):
                self.scene.broker.lie(TOPICS.metadata(f"{number + 5}.{role}.json"), b"{}")

        self.do(flood())

    @rule(shuffle=st.booleans(), times=st.integers(1, 3))
    def disorders(self, shuffle: bool, times: int) -> None:
        self.scene.broker.shuffle, self.scene.broker.times = shuffle, times

    @rule(digest=st.sampled_from(["0" * 64, "f" * 64]))
    def says_what_nobody_asked_for(self, digest: str) -> None:
        more = chunks_of(TOPICS, bytes(3 * CHUNK), CHUNK, digest)
        self.scene.broker.more = [Message(topic, payload) for topic, payload in more.items()]

    @rule()
    def reconnects(self) -> None:
        async def reconnect() -> None:
            self.scene.broker.reconnect()

        self.do(reconnect())

    # at last

    @precondition(lambda self: hasattr(self, "scene"))
    @rule()
    def behaves(self) -> None:
        self.scene.broker.behave()
        self.do(self.scene.until_converged())

    @invariant()
    def nothing_came_in(self) -> None:
        if hasattr(self, "scene"):
            self.do(asyncio.sleep(0))
            self.scene.check()

    def teardown(self) -> None:
        if not hasattr(self, "scene"):
            return
        try:
            self.behaves()
        finally:
            self.do(self.box.__aexit__(None, None, None))
            self.runner.close()
            asyncio.run(self.stack.aclose())
            shutil.rmtree(self.directory)


class TestAttack(Attack.TestCase):
    settings = settings(max_examples=4, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
class TestLongAttack(Attack.TestCase):
    settings = settings(
        max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
