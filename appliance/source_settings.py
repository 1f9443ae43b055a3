"""What a source process is told: apart from the source itself, so that who starts one need not import it."""

import msgspec

from appliance.config import CameraConfig, LogConfig


class SourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a source process is told on its standard input."""

    camera: CameraConfig
    host: str
    port: int
    certificate: str
    credential: str
    log: LogConfig = LogConfig()
    first_seq: int = 0
    parent: int = 0
    """Process that started this one and with which it ends; 0: none."""
