"""Where the broker is and how to log in: from the configuration, with errors that name the key."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from appliance.config import MqttConfig
from appliance.errors import ConfigError

MAX_SECRET_BYTES = 4096
PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Prints as ``host:port``; the password stays out of logs and tracebacks."""

    host: str
    port: int
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def endpoint_of(config: MqttConfig) -> Endpoint:
    """The endpoint that a configuration names; reads the password's file. ConfigError names the key."""
    if "@" in config.url:  # before anything is said of it: what is wrong may go to logs and over MQTT
        raise ConfigError("mqtt.url: no credentials in the URL: use mqtt.username and mqtt.password")
    try:
        url = urlsplit(config.url)
        port = url.port
    except ValueError as error:
        raise ConfigError(f"mqtt.url: {config.url!r}: {error}") from error
    if url.scheme not in PORTS or not url.hostname or url.path not in ("", "/") or url.query or url.fragment:
        raise ConfigError(f"mqtt.url: {config.url!r} is not of the form mqtt://host[:port] or mqtts://host[:port]")
    if config.password and not config.username:
        raise ConfigError("mqtt.password: a password needs mqtt.username")
    tls = url.scheme == "mqtts"
    if config.ca_file and not tls:
        raise ConfigError("mqtt.ca_file: set, but mqtt.url is not mqtts://")
    return Endpoint(
        url.hostname, port or PORTS[url.scheme], tls, config.username, _secret(config.password), config.ca_file
    )


def _secret(text: str) -> str:
    if not text.startswith("file:"):
        return text
    path = Path(text.removeprefix("file:")).expanduser()
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_SECRET_BYTES + 1)
        if len(secret) > MAX_SECRET_BYTES:
            raise ConfigError(f"mqtt.password: {path} is over {MAX_SECRET_BYTES} bytes: not a password")
        return secret.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"mqtt.password: cannot read {path}: {reason}") from error


def tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    """A context that verifies the broker, by ``ca_file`` or the system's authorities. Reads files: may block."""
    try:
        context = ssl.create_default_context(cafile=endpoint.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or error
        raise ConfigError(f"mqtt.ca_file: cannot use {endpoint.ca_file}: {reason}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
