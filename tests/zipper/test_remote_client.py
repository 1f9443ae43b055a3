"""appliance.client against a real zipper, also when that goes away and comes back."""

import asyncio

import cbor2
import pytest
from zipper_on_loopback import CREDENTIAL, Running

from appliance.client import ZipperConnection, connect
from appliance.device.state import open_state
from appliance.errors import ConfigError
from appliance.frame import Frame
from appliance.transport.peer import RejectedError


def arguments(running: Running) -> dict[str, object]:
    address = running.address
    return {"host": address.host, "port": address.port, "certificate": address.certificate, "credential": CREDENTIAL}


async def first(connection: ZipperConnection):
    async with asyncio.timeout(10):
        async for observed in connection:
            return observed
    raise AssertionError


async def attached(running: Running, name: str) -> None:
    async with asyncio.timeout(10):
        while name not in running.zipper.observers:
            await asyncio.sleep(0.01)


async def test_observe_and_emit(running: Running) -> None:
    async with (
        connect("people", observes=[0x12], emits=[0x40], **arguments(running)) as function,
        connect("sink", observes=[0x40], **arguments(running)) as sink,
    ):
        await attached(running, "remote/people")
        await attached(running, "remote/sink")
        running.zipper.receive(Frame(0x12, "camera", 5, 0, "cbor", cbor2.dumps({"objects": [{"label": "person"}]})))
        observed = await first(function)
        await function.emit(observed, 0x40, {"people": len(observed.value["objects"])})
        answer = await first(sink)
        assert (answer.tag, answer.source, answer.seq, answer.value) == (0x40, "camera", 5, {"people": 1})


async def test_a_frame_that_is_no_data_has_no_value(running: Running) -> None:
    async with connect("sink", observes=[1, 2], **arguments(running)) as sink:
        await attached(running, "remote/sink")
        running.zipper.receive(Frame(1, "camera", 0, 0, "jpeg", b"\xff\xd8"))
        picture = await first(sink)
        assert picture.payload == b"\xff\xd8"
        with pytest.raises(ValueError, match="has no value"):
            _ = picture.value
        running.zipper.receive(Frame(2, "camera", 0, 0, "json", b'{"a": 1}'))
        assert (await first(sink)).value == {"a": 1}


async def test_it_reconnects(running: Running) -> None:
    async with connect("sink", observes=[1], **arguments(running)) as sink:
        await attached(running, "remote/sink")
        for session in list(running.door.sessions.values()):
            session.dismiss("shutdown", "restarting")
        assert "remote/sink" not in running.zipper.observers
        await attached(running, "remote/sink")
        running.zipper.receive(Frame(1, "camera", 9, 0, "bytes", b"x"))
        assert (await first(sink)).seq == 9


async def test_a_refusal_reaches_whoever_waits(running: Running) -> None:
    async with connect("sink", observes=[1], **arguments(running) | {"credential": "a wrong credential"}) as sink:
        with pytest.raises(RejectedError, match="unknown name or credential"):
            await first(sink)
        with pytest.raises(RejectedError):
            await sink.send(Frame(1, "camera", 0, 0, "bytes", b""))


async def test_an_undeclared_tag_is_our_own_mistake(running: Running) -> None:
    async with connect("sink", observes=[1], emits=[2], **arguments(running)) as sink:
        await attached(running, "remote/sink")
        running.zipper.receive(Frame(1, "camera", 0, 0, "bytes", b""))
        with pytest.raises(ValueError, match="connect"):
            await sink.emit(await first(sink), 3, b"x")


async def test_without_arguments_the_state_directory_is_read(running: Running, tmp_path) -> None:
    state = open_state(str(tmp_path))
    state.credential_file.write_text(CREDENTIAL)
    with pytest.raises(ConfigError, match="no appliance is running"):
        async with connect("sink", observes=[1], state=str(tmp_path)):
            pass
    state.address_file.write_text(f"127.0.0.1 {running.address.port}\n")
    async with connect("sink", observes=[1], state=str(tmp_path)):
        await attached(running, "remote/sink")
