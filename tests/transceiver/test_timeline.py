"""A session's story: what is kept of it, and how it is told."""

from transceiver.timeline import Moment, Timeline


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_moments_are_told_in_seconds_after_the_offer() -> None:
    clock = Clock()
    timeline = Timeline(clock, lambda: 1_700_000_000.0)
    timeline.note(Moment.OFFER, dialect="whip")
    clock.now += 0.25
    timeline.note(Moment.ROUTE)
    clock.now += 0.5
    timeline.note(Moment.ROAM, address="192.0.2.1:5")
    timeline.note(Moment.ROAM, address="192.0.2.1:6")

    assert timeline.began == 1_700_000_000.0
    assert timeline.at(Moment.ROUTE) == 0.25
    assert timeline.at(Moment.DTLS) is None
    assert timeline.between(Moment.ROUTE, Moment.ROAM) == 0.5
    assert timeline.between(Moment.ROUTE, Moment.DTLS) is None
    assert timeline.to_json() == [
        {"after_s": 0.0, "what": "offer", "dialect": "whip"},
        {"after_s": 0.25, "what": "route"},
        {"after_s": 0.75, "what": "roam", "address": "192.0.2.1:5"},
        {"after_s": 0.75, "what": "roam", "address": "192.0.2.1:6"},
    ]


def test_a_client_that_roams_for_ever_leaves_its_beginning_and_its_latest() -> None:
    clock = Clock()
    timeline = Timeline(clock, lambda: 0.0)
    timeline.note(Moment.OFFER)
    for number in range(1000):
        timeline.note(Moment.ROAM, address=str(number))
    timeline.note(Moment.END, reason="over")

    told = timeline.to_json()
    assert len(told) == 65
    assert told[0]["what"] == "offer"
    assert [entry.get("address") for entry in told[1:4]] == ["0", "1", "2"]
    assert told[32] == {"what": "left out", "count": 1002 - 64}
    assert [entry.get("address") for entry in told[-3:-1]] == ["998", "999"]
    assert told[-1]["reason"] == "over"
