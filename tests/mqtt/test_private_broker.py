import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import aiomqtt
import psutil
import pytest
from mosquitto import PATIENCE
from publishing import Answers, frame, publisher

from appliance.backoff import Backoff
from appliance.errors import DeviceError
from appliance.mqtt.private_broker import MAX_PACKET_BYTES, PrivateBroker

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


async def until_restarted(broker: PrivateBroker, times: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while broker.restarts < times:
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether the process runs no more (whoever adopted it may not have reaped it yet)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_it_serves_a_publisher_and_ends_with_its_context(tmp_path: Path) -> None:
    async with PrivateBroker(tmp_path / "a directory") as broker:
        pid = broker.pid
        assert pid is not None
        answers = Answers()
        async with publisher(broker.url, tmp_path / "spool.db") as publishing:
            publishing.offer(frame(0), answers.of(0))
            assert await publishing.drained(PATIENCE)
        assert answers.accepted == [0]
    assert broker.pid is None
    assert gone(pid)


async def test_it_listens_on_loopback_alone_and_bounds_packets(tmp_path: Path) -> None:
    async with PrivateBroker(tmp_path) as broker:
        assert broker.pid is not None
        listening = [
            connection.laddr
            for connection in psutil.Process(broker.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == [("127.0.0.1", broker.port)]
        client = aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5, timeout=0.5)
        with pytest.raises(aiomqtt.MqttError):
            async with client:
                await client.publish("topic", bytes(MAX_PACKET_BYTES), qos=1)


async def test_it_comes_back_on_the_same_port_when_it_dies(tmp_path: Path) -> None:
    async with PrivateBroker(tmp_path, retry=Backoff(0.01, limit=0.01)) as broker:
        answers = Answers()
        async with publisher(broker.url, tmp_path / "spool.db") as publishing:
            for times in (1, 2):
                assert await publishing.drained(PATIENCE)
                pid, url = broker.pid, broker.url
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await until_restarted(broker, times)
                assert (broker.url, broker.pid != pid) == (url, True)
                publishing.offer(frame(times), answers.of(times))
            assert await publishing.drained(PATIENCE)
            assert publishing.stats.connection.reconnects == 2
    assert answers.accepted == [1, 2]


async def test_retained_states_outlive_an_orderly_end(tmp_path: Path) -> None:
    for said in (True, False):
        async with PrivateBroker(tmp_path) as broker:
            client = aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5)
            async with client, asyncio.timeout(PATIENCE):
                if said:
                    await client.publish("state", b"kept", qos=1, retain=True)
                else:
                    await client.subscribe("state")
                    message = await anext(aiter(client.messages))
                    assert message.payload == b"kept"


async def test_it_dies_with_us_however_we_die(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from pathlib import Path
        from appliance.mqtt.private_broker import PrivateBroker
        async def main():
            async with PrivateBroker(Path(sys.argv[1])) as broker:
                print(broker.pid, broker.port, flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), str(tmp_path), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    pid, port = map(int, (await process.stdout.readline()).split())
    process.kill()
    await process.wait()
    async with asyncio.timeout(PATIENCE):
        while not gone(pid):
            await asyncio.sleep(0.01)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_port_taken_meanwhile_is_left_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1], free.getsockname()[1]]
        free.close()
        monkeypatch.setattr("appliance.mqtt.private_broker._free_port", iter(ports).__next__)
        async with PrivateBroker(tmp_path) as broker:
            assert broker.port == ports[1]


async def test_a_broker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr("appliance.mqtt.private_broker._free_port", lambda: taken.getsockname()[1])
        with pytest.raises(DeviceError, match="Address already in use"):
            async with PrivateBroker(tmp_path):
                raise AssertionError("entered")


async def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot be written"):
        async with PrivateBroker(tmp_path / "file"):
            raise AssertionError("entered")
    with pytest.raises(DeviceError, match="Mosquitto can be told"):
        async with PrivateBroker(tmp_path / "a\nlistener 1"):
            raise AssertionError("entered")


async def test_a_missing_mosquitto_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_more: None)
    with pytest.raises(DeviceError, match="apt-get install mosquitto"):
        async with PrivateBroker(tmp_path):
            raise AssertionError("entered")


async def test_an_error_of_the_body_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with PrivateBroker(tmp_path) as broker:
            raise KeyError
    assert broker.pid is None
