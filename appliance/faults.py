"""Keeps what handlers leave behind when they fail: crash capsules, and quarantines that outlive restarts.

A full or failing disk is a warning, and nothing else.
"""

import asyncio
import hashlib
import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from appliance.sandbox.capsule import Crash, capsule_of
from appliance.sandbox.evidence import Capsules, Quarantines
from appliance.sandbox.failure import Failure
from appliance.sandbox.quarantine import Quarantined
from appliance.sandbox.spec import HandlerSpec
from appliance.zipper.handlers import LocalHandler

log = logging.getLogger(__name__)

MAX_WRITES = 4
"""Capsules under way to the disk; further ones meanwhile are not kept."""


class FaultKeeper:
    """``async with FaultKeeper(…)``: on leaving it, everything is on the disk."""

    def __init__(self, capsules: Path, quarantine: Path) -> None:
        self._capsules = Capsules(capsules)
        self._quarantines = Quarantines(quarantine)
        self._handlers: list[LocalHandler] = []
        self._recorded: dict[LocalHandler, bool] = {}
        """Handlers in quarantine: whether the record is on the disk. Without it, its absence releases nobody."""
        self._disk = asyncio.Lock()
        self._writes = 0
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        theirs = isinstance(error, asyncio.CancelledError)  # an error of the body's own passes as it is
        await self._group.__aexit__(*((kind, error, trace) if theirs else (None, None, None)))

    async def quarantined(self, spec: HandlerSpec) -> Failure | None:
        """Why this version of a handler may not run; None where it may."""
        record = await asyncio.to_thread(self._quarantines.read, spec.name)
        if record is None:
            return None
        about = record.is_about(spec.version, await asyncio.to_thread(_digest, spec), _changes(spec))
        return record.failure if about else None

    def watch(self, handler: LocalHandler, *, recorded: bool = False) -> None:
        """:meth:`crashed` and :meth:`keep` are about this handler, too; ``recorded``: it is in quarantine already."""
        self._handlers.append(handler)
        if recorded:
            self._recorded[handler] = True

    def unwatch(self, handler: LocalHandler) -> None:
        """It is not served any more. What the disk has of it stays there."""
        self._handlers.remove(handler)
        self._recorded.pop(handler, None)

    # --- capsules --------------------------------------------------------------------------------------------

    def crashed(self, crash: Crash) -> None:
        """Write the capsule of a failure, soon; never blocks."""
        if self._writes >= MAX_WRITES:
            log.warning("event=capsule_skipped handler=%s being_written=%d", crash.spec.name, self._writes)
            return
        self._writes += 1
        self._group.create_task(self._write(crash), name=f"capsule of {crash.spec.name}")

    async def _write(self, crash: Crash) -> None:
        name = crash.spec.name
        try:
            async with self._disk:
                file = await asyncio.to_thread(self._store, crash)
        except OSError as error:
            log.warning("event=capsule_not_written handler=%s error=%s", name, error)
        else:
            log.warning("event=capsule_written handler=%s kind=%s file=%s", name, crash.failure.kind, file)
            for handler in self._handlers:
                if handler.spec is crash.spec:
                    handler.written(crash.failure, file)
        finally:
            self._writes -= 1

    def _store(self, crash: Crash) -> str:
        return self._capsules.write(capsule_of(crash, _digest(crash.spec)))

    # --- quarantines -----------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Record new quarantines, and release handlers whose record is gone. Call it every now and then."""
        for handler in list(self._handlers):  # it may change meanwhile
            status = handler.status
            if status.state != "quarantined" or status.last_failure is None:
                self._recorded.pop(handler, None)
            elif handler.shadow:
                continue  # the record of its name is about the one in service
            elif not self._recorded.get(handler):
                recorded = await self._record(handler, warn=handler not in self._recorded)
                if handler in self._handlers:
                    self._recorded[handler] = recorded
            elif not await asyncio.to_thread(self._quarantines.there_is, handler.spec.name):
                handler.release()

    async def _record(self, handler: LocalHandler, *, warn: bool) -> bool:
        """Whether the record is on the disk; else it is in quarantine as long as this process runs."""
        spec = handler.spec
        async with self._disk:  # a capsule that is being written is to be named in the record
            failure = handler.status.last_failure
            assert failure is not None
            try:
                await asyncio.to_thread(self._write_record, spec, failure)
            except OSError as error:
                if warn:
                    log.warning("event=quarantine_not_recorded handler=%s error=%s", spec.name, error)
                return False
        return True

    def _write_record(self, spec: HandlerSpec, failure: Failure) -> None:
        self._quarantines.write(Quarantined(spec.name, spec.version, _digest(spec), failure, _changes(spec)))


def _digest(spec: HandlerSpec) -> str:
    """SHA-256 of the module: a while for a large one."""
    return hashlib.sha256(spec.module).hexdigest()


def _changes(spec: HandlerSpec) -> str:
    """Stands for what an operator may change of a version: it may be what is wrong with it."""
    models = [model.model.digest for model in spec.models]
    changed = msgspec.json.encode((dict(spec.settings), spec.observes, models), order="sorted")
    return hashlib.sha256(changed).hexdigest()
