"""The stream function of the README runs as it stands there, against a real zipper."""

import asyncio
import os
import re
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import cbor2
import pytest

import appliance.client
from appliance.device.state import open_state
from appliance.frame import Frame
from appliance.transport.identity import CERTIFICATE_FILE

sys.path.insert(0, str(Path(__file__).parent / "zipper"))
from zipper_on_loopback import CREDENTIAL, Running, peers, ring, running  # noqa: F401 - fixtures

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
WITHIN = 10.0


@pytest.fixture
async def example(running: Running, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:  # noqa: F811
    """The program, given nothing but a state directory."""
    state = open_state(str(tmp_path / "state"))
    state.credential_file.write_text(CREDENTIAL)
    (state.path / CERTIFICATE_FILE).write_bytes(running.address.certificate.read_bytes())
    state.address_file.write_text(f"127.0.0.1 {running.address.port}\n")
    environment = {**os.environ, "APPLIANCE_STATE": str(state.path)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", EXAMPLE, env=environment)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def detections(seq: int, *labels: str) -> Frame:
    objects = [{"label": label, "score": 0.9, "box": [0, 0, 1, 1]} for label in labels]
    return Frame(0x12, "camera", seq, 0, "cbor", cbor2.dumps({"objects": objects}))


async def test_it_counts_people(running: Running, example: asyncio.subprocess.Process) -> None:  # noqa: F811
    async with asyncio.timeout(WITHIN), running.observer("sink", observes=(0x40,)) as sink:
        while "remote/doorbell" not in running.zipper.observers:
            assert example.returncode is None, "the program has ended"
            await asyncio.sleep(0.01)
        running.zipper.receive(detections(1, "dog"), lossless=True)
        running.zipper.receive(detections(2, "person", "dog", "person"), lossless=True)
        frame = await sink.receive()
    assert (frame.tag, frame.source, frame.seq) == (0x40, "camera", 2)
    assert cbor2.loads(frame.payload) == {"people": 2}
    assert frame.producer is not None
    assert frame.producer.handler == "doorbell"


def test_the_docstring_has_the_same_example() -> None:
    assert textwrap.indent(EXAMPLE, "    ").strip() in str(appliance.client.__doc__)


def test_it_is_as_short_as_promised() -> None:
    assert len(EXAMPLE.splitlines()) <= 20
