"""How warm the box is, as its kernel says."""

from pathlib import Path

THERMAL = Path("/sys/class/thermal")
MAX_ZONES = 64
MAX_ZONE_BYTES = 64
CPU_TYPES = ("cpu", "x86_pkg_temp", "soc", "acpitz")
"""Beginnings of the types of zones that are the processor's, the best first: ``cpu-thermal`` is a Raspberry Pi's."""
PLAUSIBLE = range(-55_000, 150_001)
"""Thousandths of a degree; a sensor that is out of order says anything."""


def cpu_temperature(root: Path = THERMAL) -> float | None:
    """Degrees Celsius of the processor, or of the first zone where none is known to be its; None where there is none.

    A machine without a sensor (many a virtual one) is a normal case.
    """
    zones = sorted(root.glob("thermal_zone*"), key=lambda zone: (len(zone.name), zone.name))[:MAX_ZONES]
    readings = [(_rank(_read(zone / "type")), _temperature(zone)) for zone in zones]
    known = [(rank, value) for rank, value in readings if value is not None]
    return min(known, key=lambda reading: reading[0])[1] / 1000 if known else None


def _rank(kind: str) -> int:
    return next((rank for rank, start in enumerate(CPU_TYPES) if kind.startswith(start)), len(CPU_TYPES))


def _temperature(zone: Path) -> int | None:
    """Thousandths of a degree; None for a zone that is switched off or says nonsense."""
    try:
        value = int(_read(zone / "temp"))
    except ValueError:
        return None
    return value if value in PLAUSIBLE else None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ZONE_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
