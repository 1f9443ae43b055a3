"""Work in a thread is over when whoever waits for it goes on."""

import asyncio
import threading

import pytest

from appliance.threads import in_thread


async def test_the_result_and_the_error_come_back() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


@pytest.mark.parametrize("cancellations", [1, 2, 3])
async def test_the_work_has_ended_however_often_it_is_cancelled(cancellations: int) -> None:
    begun, end, ended = asyncio.Event(), threading.Event(), False
    loop = asyncio.get_running_loop()

    def work() -> None:
        nonlocal ended
        loop.call_soon_threadsafe(begun.set)
        end.wait(10)
        ended = True
        raise ValueError("that nobody waits for any more")

    task = asyncio.create_task(in_thread(work))
    await begun.wait()
    for _ in range(cancellations):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
