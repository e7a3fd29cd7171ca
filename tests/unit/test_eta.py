"""The time that is left, by clocks that the tests set."""

import pytest

from scaleup.common.timing import Rate


class Work:
    """Steps that take the seconds that they are given."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rate = Rate(lambda: self.now)

    def take(self, *seconds: float, steps: int = 1) -> float:
        """Seconds of a step by the rate, afterwards."""
        for each in seconds:
            self.now += each
            self.rate.count(steps)
        found = self.rate.seconds()
        assert found is not None
        return found


def test_one_slow_step_changes_nothing():
    work = Work()
    assert work.take(*[1.0] * 30) == pytest.approx(1)
    assert work.take(60.0) == pytest.approx(1)
    assert work.take(*[1.0] * 5) == pytest.approx(1)


def test_a_lasting_change_is_followed_within_the_recent_steps():
    work = Work()
    work.take(*[1.0] * 200)
    assert work.take(*[3.0] * 30) == pytest.approx(3)
    assert work.take(*[1.0] * 30) == pytest.approx(1)


def test_steps_that_take_turns_count_by_their_mean():
    work = Work()
    assert work.take(*[4.0, 1.0, 1.0] * 40) == pytest.approx(2, rel=0.2)


def test_the_first_steps_do_not_count():
    work = Work()
    assert work.take(40.0) == pytest.approx(40)  # there is nothing else to go by
    assert work.take(2.0) == pytest.approx(2)


def test_what_an_earlier_run_did_does_not_count():
    work = Work()
    work.rate.count(900)  # at once
    work.take(2.0)
    assert work.take(2.0, 2.0) == pytest.approx(2)


def test_short_steps_and_bursts_are_counted_together():
    work = Work()
    assert work.take(*[0.0, 0.0, 0.0, 0.04] * 1000) == pytest.approx(0.01, rel=0.05)


def test_the_time_left_is_said_in_hours_minutes_and_seconds():
    work = Work()
    assert work.rate.eta(10) == ""
    work.take(1.0, 1.5, 1.5)
    assert work.rate.eta(3000) == "eta 1:15:00"
