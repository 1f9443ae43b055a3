"""Which of two versions is the higher: the precedence of Semantic Versioning. Pure."""

from functools import total_ordering


@total_ordering
class Precedence:
    """Orders versions as https://semver.org says: ``1.0.0-rc.2`` < ``1.0.0-rc.10`` < ``1.0.0``; what follows ``+``
    does not count."""

    def __init__(self, version: str) -> None:
        numbers, _, before = version.partition("+")[0].partition("-")
        parts = [(not _is_number(part), *_number(part)) for part in before.split(".")] if before else []
        self._key = [_number(number) for number in numbers.split(".")], not before, parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Precedence) and self._key == other._key

    def __lt__(self, other: "Precedence") -> bool:
        return self._key < other._key

    def __hash__(self) -> int:
        return hash(str(self._key))


def is_lower(version: str, than: str) -> bool:
    """Whether going from ``than`` to ``version`` is a downgrade."""
    return Precedence(version) < Precedence(than)


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal()


def _number(part: str) -> tuple[int, str]:
    """Orders as the number does, however many digits a stranger gives it; other words as they are."""
    digits = part.lstrip("0") if _is_number(part) else part
    return (len(digits) if _is_number(part) else 0), digits
