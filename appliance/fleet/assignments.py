"""What is desired, changed: a handler deployed, taken away, or brought back as it was. Pure.

Each change puts what was before into the history, but a rollback takes it from there: two rollbacks go
two steps back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.deploy.desired import EVERYBODY, MAX_DEPLOYED, Assignment, Desired, device_target, group_target
from appliance.deploy.versions import is_lower
from appliance.errors import ConfigError
from appliance.fleet.history import History, Was
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

    def was(self, target: str, handler: str) -> Was:
        """What a document says of a handler, as the history has it."""
        handlers = self.documents.get(target, Desired()).handlers
        return (handlers[handler] or "none") if handler in handlers else "nothing"

    def changed(self, target: str, handler: str, now: Was) -> "Wanted":
        """With what was before in the history."""
        before = (*self.history.of(target, handler), self.was(target, handler))
        return self.saying(target, handler, now, self.history.remembering(target, handler, before))

    def saying(self, target: str, handler: str, now: Was, history: History) -> "Wanted":
        handlers = dict(self.documents.get(target, Desired()).handlers)
        handlers.pop(handler, None)
        if now != "nothing":
            handlers[handler] = now if isinstance(now, Assignment) else None
        if len(handlers) > MAX_DEPLOYED:
            raise ConfigError(f"{name_of(target)}: {len(handlers)} handlers are over the limit of {MAX_DEPLOYED}")
        return Wanted({**self.documents, target: Desired(handlers=handlers)}, history)


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
    if before and is_lower(assignment.version, before.version) and not downgrade:
        raise ConfigError(
            f"{name_of(target)} has {handler} {before.version}, and {assignment.version} is lower; "
            f"`appliance fleet rollback` goes back to what was there, and --downgrade to any version"
        )
    return wanted if before == assignment else wanted.changed(target, handler, assignment)


def undeploy(wanted: Wanted, target: str, handler: str) -> Wanted:
    """Takes a handler away, though a group before this document may give it. ConfigError where nothing gives it."""
    givers = [path for path, each in wanted.documents.items() if each.handlers.get(handler) is not None]
    weaker = target != group_target(EVERYBODY) and any(path.startswith("groups/") for path in givers if path != target)
    if not givers:
        raise ConfigError(f"{handler} is not deployed to anything; `appliance fleet status` shows what is")
    if target not in givers and not weaker:
        raise ConfigError(f"{handler} is deployed to {', '.join(map(name_of, givers))}: name it with --to")
    return wanted.changed(target, handler, "none" if weaker else "nothing")


def forget(wanted: Wanted, target: str, handler: str) -> Wanted:
    """A document says nothing of a handler any more: weaker ones count again. ConfigError where it says nothing."""
    if wanted.was(target, handler) == "nothing":
        raise ConfigError(f"{name_of(target)} says nothing about {handler}")
    return wanted.changed(target, handler, "nothing")


def rollback(wanted: Wanted, target: str, handler: str) -> Wanted:
    """What was said before, be it nothing: weaker groups count again then. ConfigError where nothing ever was."""
    earlier = wanted.history.of(target, handler)
    if not earlier:
        raise ConfigError(f"{name_of(target)} has never had another {handler}; `appliance fleet status` shows who has")
    history = wanted.history.remembering(target, handler, earlier[:-1])
    return wanted.saying(target, handler, earlier[-1], history)


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


def _words(handlers: Mapping[str, Assignment | None], handler: str) -> str:
    if handler not in handlers:
        return "nothing"
    assignment = handlers[handler]
    if assignment is None:
        return "none, whatever weaker groups have"
    settings = "".join(f" {key}={value}" for key, value in sorted(assignment.settings.items()))
    observes = f" observes {', '.join(map(str, assignment.observes))}" if assignment.observes is not None else ""
    return f"{assignment.version} {assignment.digest[:12]}{settings}{observes}"
