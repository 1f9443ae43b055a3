"""Errors say whose fault they are, so that logs, retries and status can act on it.

Every error this project raises on purpose is one of the four kinds below. Anything else that surfaces
is a defect of ours and is allowed to end the process: systemd (or the supervisor) restarts it.
"""


class ApplianceError(Exception):
    """Base of every deliberate error; its text is one sentence a user can act on."""


class ConfigError(ApplianceError):
    """The configuration is wrong: names the file, the key path and the remedy."""


class PeerError(ApplianceError):
    """A peer (source, remote handler, broker) broke the protocol or went away."""


class HandlerError(ApplianceError):
    """A handler (guest module or its manifest) did something it may not, or failed."""


class DeviceError(ApplianceError):
    """Hardware or the operating system of this device: camera, Edge TPU, disk, a missing program."""


class ModelError(ApplianceError):
    """A model file is damaged, unsupported, or crashed its process."""


def deliberate(error: BaseException) -> ApplianceError | None:
    """The deliberate error in an exception or in the groups that task groups make; None where there is none.

    A group that holds a defect of ours beside it is a defect: None.
    """
    if isinstance(error, ApplianceError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [deliberate(each) for each in error.exceptions]
        return found[0] if all(found) else None
    return None
