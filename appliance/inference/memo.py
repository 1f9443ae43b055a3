"""Results remembered while their frame lives, so that a question is answered once. Pure."""

from typing import Generic, TypeVar

from appliance.inference.messages import View

MEMO_BYTES = 16 << 20
"""Results remembered, in bytes of their tensors."""
MAX_ENTRIES = 1024
"""… and in number: the smallest, or an error, takes memory, too."""

Identity = tuple[str, str, str, bool]
"""Digest, runtime, delegate and range of the input: models that have them in common share a process."""
Question = tuple[Identity, int, View]
"""The model, the frame's key, and the view of it."""
Value = TypeVar("Value")


class Memo(Generic[Value]):
    """At most ``limit`` bytes of values; the oldest make room, and all of a frame go with it."""

    def __init__(self, limit: int = MEMO_BYTES) -> None:
        self._limit = limit
        self._entries: dict[Question, tuple[Value, int]] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, question: Question) -> bool:
        return question in self._entries

    def get(self, question: Question) -> Value | None:
        entry = self._entries.get(question)
        return None if entry is None else entry[0]

    def put(self, question: Question, value: Value, size: int) -> None:
        """Remember a value of so many bytes; not one that alone is over the limit, and none where that is 0."""
        self._drop(question)
        if self._limit == 0 or size > self._limit:
            return
        self._entries[question] = (value, size)
        self.size += size
        while self.size > self._limit or len(self._entries) > MAX_ENTRIES:
            self._drop(next(iter(self._entries)))

    def forget(self, key: int) -> None:
        """Drop everything about one frame."""
        for question in [question for question in self._entries if question[1] == key]:
            self._drop(question)

    def _drop(self, question: Question) -> None:
        _, size = self._entries.pop(question, (None, 0))
        self.size -= size
