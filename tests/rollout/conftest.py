"""Everything that is waited for comes soon."""

import pytest

from appliance.rollout import rollout, running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "POLL_SECONDS", 0.002)
    monkeypatch.setattr(rollout, "FIRST_RETRY", 0.002)
    monkeypatch.setattr(rollout, "FIRST_SAVE", 0.002)
    monkeypatch.setattr(running, "FIRST_SERVE", 0.002)
