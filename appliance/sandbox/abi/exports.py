"""What conventions of other systems find in a module, and how it is started."""

from appliance.sandbox.abi.wasi_program import ExitError
from appliance.sandbox.engine import Function, GuestFailedError, Instance

STARTERS = ("_initialize", "_start")
"""A library's constructors, or a program's ``main``; a module has at most one of them."""


def initialise(instance: Instance) -> None:
    """Let a module's constructors run; a ``main`` may end with status 0. GuestFailedError ``init``, ``trap``."""
    for name in STARTERS:
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
