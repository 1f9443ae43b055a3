"""What a model's process is to do next, and what it has done before being asked. No numpy, no I/O."""

import threading
from collections import deque
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Run(Generic[Tensor]):
    """A request whose inputs are made."""

    id: int
    tensors: list[Tensor]
    decode_us: int = 0
    prepared: bool = False


class Prepared(Generic[Tensor]):
    """Inputs made ahead of their question: at most MAX_AHEAD, the oldest making room."""

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


class Desk(Generic[Tensor]):
    """Between the threads: the one that reads puts messages in, one decodes, and one runs the model.

    A request whose input is prepared goes to the model at once, whatever is being decoded. Pictures are
    prepared while no request waits to be decoded; of those to prepare, the newest are kept.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: deque[Request] = deque()
        self._ahead: deque[Prepare] = deque(maxlen=MAX_AHEAD)
        self._prepared: Prepared[Tensor] = Prepared()
        self._runs: deque[Run[Tensor]] = deque()
        self._closed = False

    def put(self, message: Request | Prepare) -> bool:
        """Take a message in; False where there are MAX_REQUESTS already and it is refused."""
        with self._changed:
            if isinstance(message, Prepare):
                self._ahead.append(message)
            elif len(self._requests) + len(self._runs) >= MAX_REQUESTS:
                return False
            elif not self._run_prepared(message):
                self._requests.append(message)
            self._changed.notify_all()
            return True

    def next_to_decode(self) -> Request | Prepare | None:
        """What to decode next; waits for it. None once the desk is closed.

        One decoded input may wait while the model runs: to decode further requests would only take memory.
        """
        with self._changed:
            while not self._closed:
                if self._requests and all(run.prepared for run in self._runs):
                    request = self._requests.popleft()
                    if not self._run_prepared(request):
                        return request
                elif self._ahead and not self._requests:
                    prepare = self._ahead.popleft()
                    if key_of(prepare) not in self._prepared:
                        return prepare
                else:
                    self._changed.wait()
            return None

    def next_to_run(self) -> Run[Tensor] | None:
        """Which request to run next; waits for it. None once the desk is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._runs)
            if self._closed:
                return None
            run = self._runs.popleft()
            self._changed.notify_all()
            return run

    def run(self, run: Run[Tensor]) -> None:
        """The inputs of a request are made."""
        with self._changed:
            self._runs.append(run)
            self._changed.notify_all()

    def keep(self, key: Key, tensor: Tensor) -> Tensor | None:
        """An input is prepared; returns another that had to make room, for its memory to be used again."""
        with self._changed:
            return self._prepared.put(key, tensor)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run_prepared(self, request: Request) -> bool:
        """Whether the request's input was prepared, and is on its way to the model now."""
        if not isinstance(request, Infer):
            return False
        waiting = [prepare for prepare in self._ahead if key_of(prepare) != key_of(request)]
        self._ahead = deque(waiting, MAX_AHEAD)  # what is asked for need not be prepared any more
        tensor = self._prepared.take(key_of(request))
        if tensor is None:
            return False
        self._runs.append(Run(request.id, [tensor], prepared=True))
        self._changed.notify_all()
        return True
