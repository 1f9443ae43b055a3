"""When the fleet has been sent again, what failed is tried again: at once, and not too often."""

import math

from hypothesis import given
from hypothesis import strategies as st

from appliance.deploy.resent import AGAIN_SECONDS, TIMESTAMP, Resent


def test_the_timestamp_alone_says_so() -> None:
    resent = Resent()
    assert not resent.heard("7.snapshot.json")
    assert not resent.due(1e9)
    assert resent.due_at == math.inf
    assert resent.heard(TIMESTAMP)
    assert resent.due(0.0)
    assert not resent.due(1e9), "once for each time it was heard"


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.booleans()), max_size=60))
def test_nothing_that_was_heard_is_forgotten_and_no_two_are_too_close(moments: list[tuple[float, bool]]) -> None:
    resent = Resent()
    now = 0.0
    last = -math.inf
    open_since: float | None = None
    for later, heard in moments:
        now += later
        if heard:
            resent.heard(TIMESTAMP)
            open_since = now if open_since is None else open_since
        due = resent.due(now)
        assert due == (open_since is not None and now - last >= AGAIN_SECONDS)
        if due:
            last, open_since = now, None
