"""The connection against brokers that misbehave, and over TLS."""

import asyncio
import datetime as dt
import ipaddress
import random
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mosquitto import PATIENCE, Mosquitto
from scripted_broker import CONNACK, DISCONNECT, PUBACK, Conversation, Listener, error_with, fake_broker, running, says

from appliance.mqtt.endpoint import Endpoint
from appliance.mqtt.link import MAX_INBOUND_BYTES, WINDOW, WINDOW_BYTES, Message


async def test_messages_are_acknowledged_in_order_and_the_window_holds(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(Endpoint("127.0.0.1", broker.port), listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        sent = 0
        while client.room:
            client.send(Message("topic", b"x"), sent)
            sent += 1
        assert sent == WINDOW
        client.send(Message("topic", b"x", qos=0), "never comes back")
        await listener.until(lambda: len(listener.tokens) == WINDOW)
        assert listener.tokens == list(range(WINDOW))
        assert client.room
    assert listener.events == ["connected", "disconnected"]


async def test_the_window_is_bounded_in_bytes(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(Endpoint("127.0.0.1", broker.port), listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        sent = 0
        while client.room:
            client.send(Message("topic", bytes(WINDOW_BYTES // 3)), sent)
            sent += 1
        assert sent == 3
        await listener.until(lambda: listener.tokens == [0, 1, 2])


async def test_the_brokers_own_limits_are_kept(tmp_path: Path, mosquitto_binary: str) -> None:
    listener = Listener()
    with Mosquitto(tmp_path, "allow_anonymous true", "max_packet_size 5000") as broker:
        async with running(Endpoint("127.0.0.1", broker.port), listener) as client:
            await listener.until(lambda: listener.events == ["connected"])
            assert client.max_message == 5000
            largest = Message("topic", bytes(5000 - Message("topic", b"").size))
            client.send(largest, "largest")
            await listener.until(lambda: listener.tokens == ["largest"])


async def test_a_receive_maximum_is_kept() -> None:
    properties = bytes.fromhex("210003")  # receive maximum 3
    connack = bytes((0x20, 3 + len(properties), 0, 0, len(properties))) + properties
    listener = Listener()
    async with fake_broker([says(connack)]) as endpoint, running(endpoint, listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        for number in range(3):
            assert client.room
            client.send(Message("topic", b"x"), number)
        assert not client.room


@pytest.mark.parametrize(
    ("answer", "stay", "words"),
    [
        (b"", False, "was lost"),
        (b"", True, "does not answer"),
        (CONNACK, False, "was lost"),
        (b"\x20\x03\x00\x88\x00", True, "ended the connection: Server unavailable"),
        (b"\x20\x03\x00\x86\x00", True, "refuses this login: Bad user name or password"),
        (CONNACK + bytes((DISCONNECT, 2, 0x8B, 0)), True, "Server shutting down"),
        (CONNACK + bytes((DISCONNECT, 2, 0x8E, 0)), True, "give each device its own device.name"),
        (CONNACK + b"\x30\xff\xff\xff\x7f", True, f"over the limit of {MAX_INBOUND_BYTES}"),
        (CONNACK + b"\x30\xff\xff\xff\xff\x7f", True, "the broker at"),
        (CONNACK + b"\x40\x00", True, "Protocol error"),
        (CONNACK + b"\x30\x02\xff\xff", True, "the broker at"),
        (CONNACK + b"\x00\x00", True, "the broker at"),
        (b"\x20\xff\xff\xff\x7f", True, "was lost"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, "does not answer"),
    ],
)
async def test_brokers_that_misbehave_are_left_and_tried_again(
    answer: bytes, stay: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.mqtt.link.CONNECT_SECONDS", 0.3)
    listener = Listener()
    script = [says(answer, stay=stay)]
    async with fake_broker(script) as endpoint, running(endpoint, listener) as client:
        await error_with(client, words)
        assert str(endpoint) in client.connection.error
        script[0] = says(CONNACK)
        await listener.until(lambda: client.connection.connected)
        assert client.connection.error == ""


async def test_connections_that_are_lost_at_once_again_and_again_raise_a_question() -> None:
    listener = Listener()
    async with fake_broker([says(CONNACK, stay=False)]) as endpoint, running(endpoint, listener, 0.001) as client:
        await error_with(client, "was lost")
        await error_with(client, "is there another")


async def test_whatever_a_broker_says_the_next_one_is_heard() -> None:
    """Noise after the CONNACK: first bytes of every kind of packet, then anything."""
    chance = random.Random(1)
    listener = Listener()
    script = [says(b"")]
    async with fake_broker(script) as endpoint, running(endpoint, listener, 0.001) as client:
        for kind in range(256):
            noise = bytes((kind, chance.randrange(12))) + chance.randbytes(chance.randrange(20))
            script[0] = says(CONNACK + noise, stay=False)
            seen = len(listener.events)
            await listener.until(lambda seen=seen: listener.events[seen:].count("disconnected") >= 1)  # type: ignore[misc]
        script[0] = acknowledges(b"")
        await listener.until(lambda: client.room)
        client.send(Message("topic", b"x"), "token")
        await listener.until(lambda: listener.tokens == ["token"])


def acknowledges(reason: bytes, before: bytes = b"") -> Conversation:
    """Says ``before``, then answers the first message with ``reason``."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CONNACK + before)
        packet = await reader.read(1000)
        message_id = packet[packet.index(b"topic") + 5 :][:2]
        writer.write(bytes((PUBACK, 2 + len(reason))) + message_id + reason)
        while await reader.read(1000):
            pass

    return converse


async def test_messages_that_nobody_asked_for_are_dropped() -> None:
    publish = b"\x30\x08\x00\x05topic\x00"
    listener = Listener()
    async with (
        fake_broker([acknowledges(b"", before=publish * 1000)]) as endpoint,
        running(endpoint, listener) as client,
    ):
        await listener.until(lambda: listener.events == ["connected"])
        client.send(Message("topic", b"x"), "token")
        await listener.until(lambda: listener.tokens == ["token"])
        assert client._link is not None
        assert len(client._link.messages) == 0, "aiomqtt keeps none of them"


@pytest.mark.parametrize("reason", [b"\x00\x00", b"\x10", b"\x10\x00"])
async def test_nobody_listening_is_no_refusal(reason: bytes) -> None:
    listener = Listener()
    async with fake_broker([acknowledges(reason)]) as endpoint, running(endpoint, listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        client.send(Message("topic", b"x"), "token")
        await listener.until(lambda: listener.tokens == ["token"])


async def test_a_refusing_acknowledgement_is_not_one() -> None:
    listener = Listener()
    quota_exceeded = b"\x97\x00"
    async with fake_broker([acknowledges(quota_exceeded)]) as endpoint, running(endpoint, listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        client.send(Message("topic", b"x"), "token")
        await error_with(client, "refuses messages on topic: Quota exceeded")
        assert listener.tokens == []


async def test_a_broker_that_acknowledges_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.mqtt.link.PROGRESS_SECONDS", 0.05)
    listener = Listener()
    async with fake_broker([says(CONNACK)]) as endpoint, running(endpoint, listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        client.send(Message("topic", b"x"), "token")
        await error_with(client, "has not acknowledged a message")
        assert listener.tokens == []


async def test_a_broker_that_is_never_told_anything_is_kept(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.mqtt.link.PROGRESS_SECONDS", 0.001)
    listener = Listener()
    async with running(Endpoint("127.0.0.1", broker.port), listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        link = client._link
        assert link is not None
        async with asyncio.timeout(PATIENCE):
            watched = link._watching
            while link._watching is watched:  # it has looked at least once
                await asyncio.sleep(0.001)
        assert client.connection.connected


async def test_reconnects_are_counted() -> None:
    listener = Listener()
    script = [says(CONNACK, stay=False)]
    async with fake_broker(script) as endpoint, running(endpoint, listener) as client:
        await listener.until(lambda: len(listener.events) >= 4)
        script[0] = says(CONNACK)
        await listener.until(lambda: client.connection.connected and client.connection.reconnects >= 2)
        assert client.connection.reconnects == listener.events.count("connected") - 1
    assert listener.events == ["connected", "disconnected"] * (client.connection.reconnects + 1)


NOT_CLOSED_BY_PAHO = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
"""Where the handshake fails, paho leaves the closing of its socket to the reference count."""


# --- TLS ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """A CA of the test's own."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, _certificate("test CA", "test CA", key, key, ca=True))

    def issue(self, directory: Path, *names: str) -> tuple[Path, Path]:
        """Files with a certificate for ``names`` (host names or addresses) and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate("broker", "test CA", key, self.key, ca=False, names=names)
        certificate_file, key_file = directory / "broker.pem", directory / "broker.key"
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file

    def write(self, file: Path) -> str:
        file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return str(file)


def _certificate(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    names: tuple[str, ...] = (),
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if names:
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make()


def tls_broker(directory: Path, authority: Authority, *names: str) -> Mosquitto:
    certificate, key = authority.issue(directory, *names)
    return Mosquitto(directory / "broker", "allow_anonymous true", f"certfile {certificate}", f"keyfile {key}")


async def test_tls_with_the_right_authority(tmp_path: Path, authority: Authority, mosquitto_binary: str) -> None:
    ca_file = authority.write(tmp_path / "ca.pem")
    listener = Listener()
    with tls_broker(tmp_path, authority, "127.0.0.1") as broker:
        endpoint = Endpoint("127.0.0.1", broker.port, tls=True, ca_file=ca_file)
        async with running(endpoint, listener) as client:
            await listener.until(lambda: listener.events == ["connected"])
            for number in range(10):
                client.send(Message("topic", bytes(20_000)), number)
            await listener.until(lambda: listener.tokens == list(range(10)))


@NOT_CLOSED_BY_PAHO
async def test_tls_with_the_wrong_authority_or_name(
    tmp_path: Path, authority: Authority, mosquitto_binary: str
) -> None:
    ours = authority.write(tmp_path / "ca.pem")
    other = Authority.make().write(tmp_path / "other.pem")
    with tls_broker(tmp_path, authority, "elsewhere.example") as broker:
        for ca_file, words in ((other, "unable to get local issuer"), (ours, "IP address mismatch")):
            endpoint = Endpoint("127.0.0.1", broker.port, tls=True, ca_file=ca_file)
            async with running(endpoint, Listener()) as client:
                await error_with(client, "is not trusted")
                assert words in client.connection.error
                assert "check mqtt.ca_file, the host's name and the clock" in client.connection.error


@NOT_CLOSED_BY_PAHO
async def test_tls_to_a_port_without_it(broker: Mosquitto, tmp_path: Path, authority: Authority) -> None:
    endpoint = Endpoint("127.0.0.1", broker.port, tls=True, ca_file=authority.write(tmp_path / "ca.pem"))
    async with running(endpoint, Listener()) as client:
        await error_with(client, "cannot be reached")


async def test_no_delay_and_user_timeout_are_set(broker: Mosquitto) -> None:
    listener = Listener()
    async with running(Endpoint("127.0.0.1", broker.port), listener) as client:
        await listener.until(lambda: listener.events == ["connected"])
        assert client._link is not None
        sock = client._link._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0
