"""Who may connect as what: credentials bound to a role, a name and tags. Deny by default."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.config import PeerConfig
from appliance.errors import PeerError
from appliance.frame import RESERVED_TAGS
from appliance.wire import PROTOCOL_VERSION, Hello

SOURCE, HANDLER, SINK = "source", "handler", "sink"
ROLES = frozenset({SOURCE, HANDLER, SINK})


class RefusedError(PeerError):
    """The peer may not do this; ``code`` goes to it in a Reject."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one zipper."""

    peers: tuple[PeerConfig, ...]
    """With their credentials resolved (no ``file:``)."""
    local_credential: str
    """Known only to whoever can read this device's state directory: any role, any name, any tag not reserved."""

    def check(self, hello: Hello) -> None:
        """RefusedError unless this hello may be accepted. Takes the same time whichever credential is near."""
        if hello.version != PROTOCOL_VERSION:
            raise RefusedError("version", f"this zipper speaks version {PROTOCOL_VERSION}, not {hello.version}")
        if hello.role not in ROLES:
            raise RefusedError("role", f"unknown role {hello.role!r}")
        if any(tag in RESERVED_TAGS for tag in hello.emits):
            raise RefusedError("tags", "tags 0xf000-0xffff are reserved for the system")
        if _same(hello.credential, self.local_credential):
            return
        known = [peer for peer in self.peers if _same(hello.credential, peer.credential)]
        peer = next((peer for peer in known if peer.name == hello.name), None)
        if peer is None:
            raise RefusedError("credential", "unknown name or credential")
        if hello.role not in peer.roles:
            raise RefusedError("role", f"{hello.name} may not connect as {hello.role}")
        _within("observe", hello.observes, peer.observes)
        _within("emit", hello.emits, peer.emits)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _within(verb: str, wanted: Iterable[int], allowed: Iterable[int]) -> None:
    beyond = sorted(set(wanted) - set(allowed))
    if beyond:
        raise RefusedError("tags", f"not allowed to {verb} tag {beyond[0]:#x}")
