"""What is desired, changed: a handler deployed, taken away, or brought back as it was. Pure.

Each change of an assignment puts the one before into the history, but a rollback takes it from there: two rollbacks go
two steps back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from appliance.deploy.desired import EVERYBODY, MAX_DEPLOYED, Assignment, Desired, device_target, group_target
from appliance.deploy.versions import is_lower
from appliance.errors import ConfigError
from appliance.fleet.history import History
from appliance.frame import is_name

_DEVICE = "device:"
_PLURALS = {"groups": "", "devices": _DEVICE}


@dataclass(frozen=True, slots=True)
class Wanted:
    """All desired documents, by path, and what was before."""

    documents: Mapping[str, Desired]
    history: History

    def of(self, target: str, handler: str) -> Assignment | None:
        return self.documents.get(target, Desired()).handlers.get(handler)

    def changed(self, target: str, handlers: Mapping[str, Assignment | None], history: History) -> "Wanted":
        if len(handlers) > MAX_DEPLOYED:
            raise ConfigError(f"{name_of(target)}: {len(handlers)} handlers are over the limit of {MAX_DEPLOYED}")
        return Wanted({**self.documents, target: Desired(handlers=dict(handlers))}, history)


def target_of(to: str) -> str:
    """``all``, ``tills`` (a group) or ``device:gate`` -> the path of its document. ConfigError for anything else."""
    device = to.startswith(_DEVICE)
    name = to.removeprefix(_DEVICE)
    if not is_name(name):
        raise ConfigError(f"--to {to!r}: is not a group, or device:NAME, with a lower-case name")
    return device_target(name) if device else group_target(name)


def name_of(target: str) -> str:
    """The path of a document -> what ``--to`` calls it."""
    kind, _, name = target.removesuffix(".json").partition("/")
    return _PLURALS[kind] + name


def deploy(wanted: Wanted, target: str, handler: str, assignment: Assignment, *, downgrade: bool = False) -> Wanted:
    """ConfigError for a lower version than the one that is desired, unless ``downgrade``."""
    before = wanted.of(target, handler)
    assignment = msgspec.structs.replace(assignment, downgrade=False)
    if before and is_lower(assignment.version, before.version):
        if not downgrade:
            raise ConfigError(
                f"{name_of(target)} has {handler} {before.version}, and {assignment.version} is lower; "
                f"`appliance fleet rollback` goes back to what was there, and --downgrade to any version"
            )
        assignment = msgspec.structs.replace(assignment, downgrade=True)
    if before and _same(before, assignment):
        return wanted
    handlers = {**wanted.documents.get(target, Desired()).handlers, handler: assignment}
    return wanted.changed(target, handlers, _remembered(wanted, target, handler))


def undeploy(wanted: Wanted, target: str, handler: str) -> Wanted:
    """Takes a handler away, though a group before this document may give it. ConfigError where nothing gives it."""
    givers = [path for path, each in wanted.documents.items() if each.handlers.get(handler) is not None]
    weaker = target != group_target(EVERYBODY) and any(path.startswith("groups/") for path in givers if path != target)
    if not givers:
        raise ConfigError(f"{handler} is not deployed to anything; `appliance fleet status` shows what is")
    if target not in givers and not weaker:
        raise ConfigError(f"{handler} is deployed to {', '.join(map(name_of, givers))}: name it with --to")
    handlers = dict(wanted.documents.get(target, Desired()).handlers)
    handlers.pop(handler, None)
    if weaker:
        handlers[handler] = None
    return wanted.changed(target, handlers, _remembered(wanted, target, handler))


def rollback(wanted: Wanted, target: str, handler: str) -> Wanted:
    """What was desired before. ConfigError where nothing was."""
    earlier = wanted.history.of(target, handler)
    if not earlier:
        raise ConfigError(
            f"nothing is known to have been before {handler} on {name_of(target)}; "
            f"`appliance fleet undeploy {handler} --to {name_of(target)}` takes it away"
        )
    now, back = wanted.of(target, handler), earlier[-1]
    lower = now is not None and is_lower(back.version, now.version)
    handlers = {
        **wanted.documents.get(target, Desired()).handlers,
        handler: msgspec.structs.replace(back, downgrade=lower),
    }
    return wanted.changed(target, handlers, wanted.history.remembering(target, handler, earlier[:-1]))


def changes(before: Wanted, after: Wanted) -> list[str]:
    """One line for each handler of each document that changes, for people."""
    lines = []
    for target in sorted({*before.documents, *after.documents}):
        old = before.documents.get(target, Desired()).handlers
        new = after.documents.get(target, Desired()).handlers
        for handler in sorted({*old, *new}):
            was, will = _words(old, handler), _words(new, handler)
            if was != will:
                lines.append(f"{name_of(target)}: {handler}  {was} -> {will}")
    return lines


def _same(before: Assignment, after: Assignment) -> bool:
    return msgspec.structs.replace(before, downgrade=after.downgrade) == after


def _remembered(wanted: Wanted, target: str, handler: str) -> History:
    before = wanted.of(target, handler)
    if before is None:
        return wanted.history
    return wanted.history.remembering(target, handler, (*wanted.history.of(target, handler), before))


def _words(handlers: Mapping[str, Assignment | None], handler: str) -> str:
    if handler not in handlers:
        return "nothing"
    assignment = handlers[handler]
    if assignment is None:
        return "none, whatever weaker groups have"
    settings = "".join(f" {key}={value}" for key, value in sorted(assignment.settings.items()))
    observes = f" observes {', '.join(map(str, assignment.observes))}" if assignment.observes is not None else ""
    downgrade = " (downgrade)" if assignment.downgrade else ""
    return f"{assignment.version} {assignment.digest[:12]}{settings}{observes}{downgrade}"
