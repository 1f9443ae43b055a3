"""Whatever a guest does, its neighbour on the same camera loses no frame, and it is told why it failed."""

from pathlib import Path

import pytest
from hostile_set import HOSTILE, RULE, Hostile
from neighbourhood import hostile_spec, neighbourhood
from sandbox_bench import until


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(each, marks=[pytest.mark.slow] if number % 2 else [], id=each.name.replace(" ", "-"))
        for number, each in enumerate(HOSTILE)
    ],
)
async def test_a_hostile_guest_hurts_only_itself(hostile: Hostile, tmp_path: Path) -> None:
    async with neighbourhood(hostile_spec(hostile), tmp_path) as place:
        if hostile.refused:
            await until(lambda: place.bad.status.state == "failed")
        elif not hostile.starts:
            await until(lambda: place.bad.status.last_failure is not None)
        else:
            await place.served()
            place.poison(hostile.poisons)
            await until(lambda: len(place.of_poison()) == hostile.poisons)
            await place.served()
            kinds = {one.finished.outcome for one in place.of_poison()}
            assert kinds & hostile.verdict, [one.finished.message for one in place.of_poison()]
            assert kinds <= hostile.verdict | {"ok"}
        if hostile.refused or not hostile.starts:
            failure = place.bad.status.last_failure
            assert failure is not None
            assert failure.kind == "refused" if hostile.refused else failure.kind in hostile.verdict
            if hostile.refused:
                rule = RULE.search(failure.message)
                assert rule is not None
                assert rule[1] in hostile.verdict, failure.message
        await place.seen_by_neighbour()
        assert place.lost() == 0
        assert place.good.status.faults == {}
        assert place.good.status.restarts == 0
