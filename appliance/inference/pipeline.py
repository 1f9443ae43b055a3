"""What passes between the threads of a model's process. No numpy, no I/O."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.inference.messages import MAX_REQUESTS, ToModel

Tensor = TypeVar("Tensor")


@dataclass(frozen=True, slots=True)
class Run(Generic[Tensor]):
    """A request whose inputs are made."""

    id: int
    tensors: list[Tensor]
    decode_us: int = 0


class Pipeline(Generic[Tensor]):
    """Between three threads: one puts requests in, one decodes them in that order, and one runs the model.

    The next input is decoded while the model runs on this one, and then waits: to decode further requests
    would only take memory.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: deque[ToModel] = deque()
        self._decoded: Run[Tensor] | None = None
        self._closed = False

    def put(self, request: ToModel) -> bool:
        """Take a request in; False where MAX_REQUESTS wait already and it is refused."""
        with self._changed:
            if len(self._requests) >= MAX_REQUESTS:
                return False
            self._requests.append(request)
            self._changed.notify_all()
            return True

    def next_to_decode(self) -> ToModel | None:
        """The next request, once no input waits for the model; None once the pipeline is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._requests and self._decoded is None))
            return None if self._closed else self._requests.popleft()

    def decoded(self, run: Run[Tensor]) -> None:
        """The inputs of the request that was given out last are made."""
        with self._changed:
            if self._decoded is not None:
                raise RuntimeError("an input waits for the model already")
            self._decoded = run
            self._changed.notify_all()

    def next_to_run(self) -> Run[Tensor] | None:
        """The request to run next; waits for it. None once the pipeline is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._decoded is not None)
            if self._closed:
                return None
            run, self._decoded = self._decoded, None
            self._changed.notify_all()
            return run

    def close(self) -> None:
        """End the waits of the other threads; what is in it is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
