"""The process that judges one module: ``python -m appliance.sandbox.admission.child``.

It reads an Order on standard input to its end, writes the Verdict on standard output, both in MessagePack, and ends.
Before it looks at the module it is locked down as a worker is, but for the system calls in CALLS. Its parent ends
it when it takes too long.
"""

import os
import sys

import msgspec

from appliance.ipc.calls import Calls, Rule, prepare
from appliance.ipc.child import die_with_parent, spare_the_parent
from appliance.manifest import EngineName
from appliance.sandbox import lockdown
from appliance.sandbox.admission.judge import engine_for, judge
from appliance.sandbox.admission.verdict import Order

CPU_SECONDS = 60
"""The backstop behind the parent's deadline."""
MEMORY_BYTES = 512 << 20
"""What validating, rewriting and compiling may take, on top of the lockdown's own margin. A module of 8 MiB in
functions of 20 KiB compiles in it; one function of 600 KiB takes 900 MiB, and no compiler has made such yet."""
CALLS: dict[EngineName, Calls] = {
    "wasm3": lockdown.CALLS,
    "wasmtime": Calls((*lockdown.CALLS.rules, Rule(("mprotect",)))),
}
"""wasmtime makes compiled code executable, although nothing here runs it."""


def main() -> None:
    die_with_parent(os.getppid())
    spare_the_parent()
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)  # the parent's words; the module is bytes yet
    allowed = CALLS[order.engine]
    prepare(allowed)
    engine = engine_for(order)
    lockdown.lock_down(MEMORY_BYTES, CPU_SECONDS, allowed)
    verdict = memoryview(msgspec.msgpack.encode(judge(order, engine)))
    while verdict:
        verdict = verdict[os.write(1, verdict) :]
    os._exit(0)  # an orderly end would make calls that are not allowed any more


if __name__ == "__main__":
    main()
