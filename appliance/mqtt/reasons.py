"""Why a broker refuses or ends: its reasons in words for the operator."""

import ssl

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from appliance.errors import PeerError
from appliance.mqtt.endpoint import Endpoint

FAILURE = 0x80
"""Reason codes from here up mean that something was not done (MQTT 5, section 2.4)."""
_PASSING = frozenset({FAILURE, 0x88, 0x89, 0x8B, 0x8D})
"""Reasons that pass by themselves: unspecified, unavailable, busy, shutting down, keep-alive timeout. Any other
is a refusal that somebody has to do something about."""
_CREDENTIALS = frozenset({0x86, 0x87})
_SESSION_TAKEN_OVER = 0x8E


class RefusedError(aiomqtt.MqttError):
    """The broker acknowledged a message by refusing it; its text names the topic and the broker's reason."""

    def __init__(self, topic: str, reason: ReasonCode) -> None:
        super().__init__(f"{topic}: {reason}")
        self.topic = topic
        self.reason = reason


def explain(error: aiomqtt.MqttError, endpoint: Endpoint) -> tuple[str, bool]:
    """What ended a connection, in words for the operator, and whether only the operator can change it."""
    cause = error.__cause__ or error.__context__ or error
    broker = f"the broker at {endpoint}"
    match cause:
        case RefusedError():
            text = f"{broker} refuses messages on {cause.topic}: {cause.reason}; check its access list"
            return text, cause.reason.value not in _PASSING
        case aiomqtt.MqttCodeError() if isinstance(cause.rc, ReasonCode):
            return _explain_reason(cause.rc, broker), cause.rc.value not in _PASSING
        case ssl.SSLCertVerificationError():
            remedy = "check mqtt.ca_file, the host's name and the clock"
            return f"{broker} is not trusted: {cause.verify_message}; {remedy}", True
        case TimeoutError():
            text = f"{broker} does not answer"
        case OSError():
            text = f"{broker} cannot be reached: {error}"
        case PeerError():
            text = f"{broker} {cause}"
        case aiomqtt.MqttError():
            text = f"{broker} closed the connection"
        case _:
            text = f"{broker} sent what is not MQTT 5: {cause!r}"
    return text, False


def _explain_reason(reason: ReasonCode, broker: str) -> str:
    if reason.value in _CREDENTIALS:
        return f"{broker} refuses this login: {reason}; check mqtt.username and mqtt.password"
    if reason.value == _SESSION_TAKEN_OVER:
        return f"{broker} took another client for this one: give each device its own device.name"
    if reason.value == FAILURE:
        return f"the connection to {broker} was lost"
    return f"{broker} ended the connection: {reason}"
