"""Every fault a handler can have, one after another beside a good neighbour, then power cuts: ``make faults``.

For each fault: what happened, how long the bad frame lasted, how soon the handler served again, and what its neighbour
on the same camera lost. Exit code 1 where something else happened than should, or the neighbour lost a frame; times
over their targets are marked, since they depend on the machine.

The power is cut during whole installs (``cut_installs.py``), on a real ext4 that forgets what was not flushed. Exit
code 1 where a box did not run the old or the new version at once, whole, or did not finish the deployment.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from cut_installs import DISK_MEGABYTES, courses, power_cuts
from hostile_set import DEADLINE_MS, HOSTILE, RULE, Hostile
from neighbourhood import Neighbourhood, hostile_spec, neighbourhood
from power_cuts import disk, unavailable
from sandbox_bench import NOTHING, until

KILL_TARGET_MS = DEADLINE_MS + 50
RECOVER_TARGET_MS = 100
CUTS = 1000
SEED = 2026


@dataclass(frozen=True)
class Row:
    fault: str
    happened: str
    right: bool
    neighbour_saw: int
    neighbour_lost: int
    kill_ms: float | None = None
    """From the delivery of the frame to its end, or from a signal to its consequence."""
    recover_ms: float | None = None
    """From there to the next frame that went well."""


async def of_guest(hostile: Hostile, state: Path) -> Row:
    async with neighbourhood(hostile_spec(hostile), state) as place:
        if hostile.refused or not hostile.starts:
            await until(lambda: place.bad.status.last_failure is not None)
            await place.seen_by_neighbour(25)
            return never_ran(hostile, place)
        await place.served()
        place.poison(hostile.poisons)
        await until(lambda: len(place.of_poison()) == hostile.poisons)
        await place.served()
        await place.seen_by_neighbour(25)
        return ran(hostile, place)


def never_ran(hostile: Hostile, place: Neighbourhood) -> Row:
    failure = place.bad.status.last_failure
    assert failure is not None
    found = RULE.search(failure.message)
    rule = found[1] if found else ""
    right = (
        (failure.kind == "refused" and rule in hostile.verdict) if hostile.refused else failure.kind in hostile.verdict
    )
    happened = f"refused: {rule}" if failure.kind == "refused" else f"{failure.kind}, before its first frame"
    return Row(hostile.name, happened, right, len(place.good.outcomes), place.lost())


def ran(hostile: Hostile, place: Neighbourhood) -> Row:
    outcomes = place.of_poison()
    kinds = {one.finished.outcome for one in outcomes}
    right = bool(kinds & hostile.verdict) and kinds <= hostile.verdict | {"ok"}
    fault = next((one for one in outcomes if one.finished.outcome != "ok"), outcomes[-1])
    after = next(one.at for one in place.bad.outcomes if one.finished.outcome == "ok" and one.at > fault.at)
    return Row(
        hostile.name,
        ", ".join(sorted(kinds)),
        right,
        len(place.good.outcomes),
        place.lost(),
        (fault.at - fault.delivered) * 1000,
        (after - fault.at) * 1000,
    )


async def of_process(name: str, number: signal.Signals, kind: str, state: Path) -> Row:
    """A process that is killed or stopped from outside."""
    good = Hostile(name, NOTHING, frozenset())
    async with neighbourhood(hostile_spec(good), state) as place:
        await place.served()
        pid = place.bad.status.pid
        assert pid is not None
        os.kill(pid, number)
        at = monotonic()
        await until(lambda: place.bad.status.last_failure is not None)
        noticed = monotonic()
        await place.served(1)
        recovered = (monotonic() - noticed) * 1000
        await place.seen_by_neighbour(25)
        failure = place.bad.status.last_failure
        happened = f"{failure.kind}: {failure.message}" if failure else "nothing"
        return Row(
            name,
            happened,
            failure is not None and failure.kind == kind,
            len(place.good.outcomes),
            place.lost(),
            (noticed - at) * 1000,
            recovered,
        )


PROCESSES = (
    ("worker killed", signal.SIGKILL, "crash"),
    ("worker stopped", signal.SIGSTOP, "deadline"),
    ("worker makes a forbidden system call", signal.SIGSYS, "forbidden"),
)
"""What is done to it from outside, and what that must count as."""


def show(row: Row) -> None:
    kill = "" if row.kill_ms is None else f"{row.kill_ms:8.1f}{'!' if row.kill_ms > KILL_TARGET_MS else ' '}"
    recover = (
        "" if row.recover_ms is None else f"{row.recover_ms:8.1f}{'!' if row.recover_ms > RECOVER_TARGET_MS else ' '}"
    )
    sign = "ok  " if row.right and not row.neighbour_lost else "FAIL"
    print(
        f"{sign} {row.fault:<52} {row.happened[:44]:<44} {kill:>9} {recover:>9} "
        f"{row.neighbour_saw:>5} {row.neighbour_lost:>5}",
        flush=True,
    )


async def matrix(chosen: str, state: Path) -> list[Row]:
    rows = []
    print(f"     {'fault':<52} {'what happened':<44} {'kill ms':>9} {'again ms':>9} {'saw':>5} {'lost':>5}")
    for hostile in HOSTILE:
        if chosen in hostile.name:
            rows.append(await of_guest(hostile, state))
            show(rows[-1])
    for name, number, kind in PROCESSES:
        if chosen in name:
            rows.append(await of_process(name, number, kind, state))
            show(rows[-1])
    return rows


def cut_the_power(count: int, seed: int) -> bool:
    """False where something was broken afterwards."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        directory = Path(name)
        if reason := unavailable(directory):
            print(f"no power cuts: {reason}")
            return True
        installs = courses(directory / "courses")
        started = monotonic()
        try:
            with disk(directory, DISK_MEGABYTES) as drive:
                tally = power_cuts(installs, drive, seed, count)
        except AssertionError as error:
            print("FAIL power cuts:", error, *getattr(error, "__notes__", ()), sep="\n")
            return False
    by_scene = ", ".join(f"{name} {number}" for name, number in tally.by_scene.items())
    print(f"ok   {tally}, in {monotonic() - started:.0f} s\n     {by_scene}")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with this in their name")
    parser.add_argument("--cuts", type=int, default=CUTS, metavar="N", help="power cuts; 0 for none")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="of the moments at which power is cut")
    arguments = parser.parse_args()
    logging.disable()  # the table says it
    with tempfile.TemporaryDirectory() as directory:
        rows = asyncio.run(matrix(arguments.only, Path(directory)))
    late = sum((row.kill_ms or 0) > KILL_TARGET_MS or (row.recover_ms or 0) > RECOVER_TARGET_MS for row in rows)
    wrong = sum(not row.right or row.neighbour_lost > 0 for row in rows)
    print(f"\n{len(rows)} faults; {wrong} did not go as they should; {late} over the targets of time, marked !")
    print(
        f"targets: killed within the deadline of {DEADLINE_MS} ms + 50 ms, serving again within {RECOVER_TARGET_MS} ms"
    )
    whole = arguments.cuts == 0 or cut_the_power(arguments.cuts, arguments.seed)
    sys.exit(wrong > 0 or not whole)


if __name__ == "__main__":
    main()
