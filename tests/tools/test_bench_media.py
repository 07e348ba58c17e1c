"""The bench of the media path runs, and measures each part; what it measures is its own concern."""

import pytest

from tools.bench import media
from tools.bench.report import hold, read_targets


def test_a_short_run_measures_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "_SESSIONS", 3)
    monkeypatch.setattr(media, "_PACKETS", 20)
    told: list[str] = []

    report = media.run(None, quick=True, progress=told.append)

    assert len(told) == 3
    assert {case.name for case in report.cases} == set(media.WHAT)
    assert all(value > 0 for case in report.cases for value in case.rounds)
    assert len(hold(report, read_targets("media"))) == 1
