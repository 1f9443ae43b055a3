"""What a model's process is to do next, and what it has done before being asked. No numpy, no I/O."""

import threading
from collections import deque
from typing import Generic, TypeVar

from appliance.inference.messages import GetPixels, Infer, InferTensors, Prepare, View

MAX_REQUESTS = 64
"""Requests a process holds; the zipper sends no more."""
MAX_AHEAD = 3
"""Pictures decoded ahead, and as many asked to be: memory is bounded, and older frames are past."""

Request = Infer | InferTensors | GetPixels
Key = tuple[int, View]
"""Which frame, and how it becomes the input."""
Tensor = TypeVar("Tensor")


def key_of(message: Infer | Prepare) -> Key:
    return message.frame.key, message.view


class Desk:
    """From the reading thread to the decoding one: requests in order, and before them nothing.

    Pictures to prepare wait until there is no request; of those the newest are kept.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: deque[Request] = deque()
        self._ahead: deque[Prepare] = deque(maxlen=MAX_AHEAD)
        self._closed = False

    def put(self, message: Request | Prepare) -> bool:
        """Take a message in; False where there are MAX_REQUESTS already and it is refused."""
        with self._changed:
            if isinstance(message, Prepare):
                self._ahead.append(message)
            elif len(self._requests) < MAX_REQUESTS:
                self._requests.append(message)
            else:
                return False
            self._changed.notify()
            return True

    def next(self) -> Request | Prepare | None:
        """What to do next; waits for it. None once the desk is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._requests or self._ahead)
            if self._closed:
                return None
            if not self._requests:
                return self._ahead.popleft()
            request = self._requests.popleft()
            if isinstance(request, Infer):  # no need to prepare any more what is being asked for
                waiting = [prepare for prepare in self._ahead if key_of(prepare) != key_of(request)]
                self._ahead = deque(waiting, MAX_AHEAD)
            return request

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Prepared(Generic[Tensor]):
    """Inputs made ahead of their question: at most MAX_AHEAD, the oldest making room. For one thread."""

    def __init__(self) -> None:
        self._tensors: dict[Key, Tensor] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._tensors

    def put(self, key: Key, tensor: Tensor) -> Tensor | None:
        """Keep an input; returns the one that had to make room, for its memory to be used again."""
        dropped = self._tensors.pop(key, None)
        if dropped is None and len(self._tensors) >= MAX_AHEAD:
            dropped = self._tensors.pop(next(iter(self._tensors)))
        self._tensors[key] = tensor
        return dropped

    def take(self, key: Key) -> Tensor | None:
        """The input that was made for ``key``, which is then no longer kept."""
        return self._tensors.pop(key, None)
