"""Levels of the log by part of the appliance, changed while it runs."""

import logging

from appliance.errors import ConfigError

ALL = "all"
HANDLERS = "handler"


class LogLevels:
    """``base`` is the configured level: that of whatever has no level of its own."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._changed: set[str] = set()

    def set_base(self, level: str) -> None:
        self._base = level
        if ALL not in self._changed:
            logging.getLogger().setLevel(level.upper())

    def change(self, unit: str, level: str) -> None:
        """From now on; ConfigError where there is no such unit: strangers make no loggers."""
        if unit not in units():
            raise ConfigError(f"the log has no unit {unit!r}; it has {', '.join(units())}")
        self._changed.add(unit)
        _logger(unit).setLevel(level.upper())

    def restore(self, unit: str) -> None:
        """As if it had never been changed."""
        if unit in self._changed:
            self._changed.remove(unit)
            _logger(unit).setLevel(self._base.upper() if unit == ALL else logging.NOTSET)


def units() -> list[str]:
    """``all``, the parts of the appliance that have said something or can, ``handler`` and ``handler.NAME``."""
    names = [name.split(".") for name in logging.root.manager.loggerDict]
    parts = {parts[1] for parts in names if parts[0] == "appliance" and len(parts) > 1}
    handlers = {".".join(parts[:2]) for parts in names if parts[0] == HANDLERS}
    return [ALL, *sorted(parts | handlers)]


def unit_of(logger: str) -> str:
    """The unit that a logger belongs to; the logger's own name where it is of no part of the appliance."""
    first, _, rest = logger.partition(".")
    return rest.partition(".")[0] if first == "appliance" and rest else logger


def _logger(unit: str) -> logging.Logger:
    if unit == ALL:
        return logging.getLogger()
    return logging.getLogger(unit if unit.partition(".")[0] == HANDLERS else f"appliance.{unit}")
