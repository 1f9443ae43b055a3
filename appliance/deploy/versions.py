"""Which of two versions is the higher: the precedence of Semantic Versioning. Pure."""

from functools import total_ordering


@total_ordering
class Precedence:
    """Orders versions as https://semver.org says: ``1.0.0-rc.2`` < ``1.0.0-rc.10`` < ``1.0.0``; what follows ``+``
    does not count."""

    def __init__(self, version: str) -> None:
        numbers, _, before = version.partition("+")[0].partition("-")
        self._numbers = tuple(int(number) for number in numbers.split("."))
        parts = before.split(".") if before else []
        self._before = tuple((0, int(part), "") if _is_number(part) else (1, 0, part) for part in parts)

    def _key(self) -> tuple[tuple[int, ...], bool, tuple[tuple[int, int, str], ...]]:
        return self._numbers, not self._before, self._before

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Precedence) and self._key() == other._key()

    def __lt__(self, other: "Precedence") -> bool:
        return self._key() < other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def is_lower(version: str, than: str) -> bool:
    """Whether going from ``than`` to ``version`` is a downgrade."""
    return Precedence(version) < Precedence(than)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal()
