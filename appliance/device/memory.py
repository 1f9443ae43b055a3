"""How much memory a process really costs."""

from pathlib import Path

MAX_ROLLUP_BYTES = 4096


def proportional_kb(pid: int) -> int:
    """Proportional set size in KiB: shared pages count by their share (proc(5), smaps_rollup); 0 where it is gone."""
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open("rb") as file:
            text = file.read(MAX_ROLLUP_BYTES)
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1])
    return 0
