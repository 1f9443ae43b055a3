"""What conventions of other systems find in a module, and how it is started."""

from collections.abc import Sequence

from appliance.sandbox.abi.wasi_program import ExitError
from appliance.sandbox.engine import Function, GuestFailedError, Instance

CONSTRUCTORS = "_initialize"
"""What a library with a C library exports, and wants to have called first."""
STARTERS = (CONSTRUCTORS, "_start")
"""That, or a program's ``main``; a module has at most one of them."""


def initialise(instance: Instance, starters: Sequence[str] = STARTERS) -> None:
    """Let a module's constructors run; a ``main`` may end with status 0. GuestFailedError ``init``, ``trap``."""
    for name in starters:
        starter = instance.find(name, "v()")
        if starter is None:
            continue
        try:
            starter()
        except ExitError as exit:
            if exit.status:
                raise GuestFailedError("init", f"{name} ended with exit status {exit.status}") from exit


def required(instance: Instance, name: str, signature: str, of: str) -> Function:
    """An export that the convention ``of`` asks for; GuestFailedError ``link``."""
    found = instance.find(name, signature)
    if found is None:
        raise GuestFailedError("link", f"it does not export {name}, which a guest of {of} must")
    return found


def exports(instance: Instance, name: str) -> bool:
    """Whether there is a function of that name, whatever its type."""
    try:
        return instance.find(name) is not None
    except GuestFailedError:
        return True
