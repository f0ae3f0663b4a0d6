"""The exchange's time on virtual time: one measurement moves nothing, several that agree do."""

import random

import pytest

from services.ingest.clock import ANSWERS_MIN, DRIFT, EVENTS_MIN, KEPT, OFF_MS, ClockSync
from tests.ingest.played import START

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
WRONG = [HOUR, 6 * HOUR, 30 * DAY, 3_650 * DAY, 2_000, 200, -200, -2_000, -HOUR, -6 * HOUR, -30 * DAY, -3_650 * DAY]
MS = 1_000_000


class World:
    """An exchange, this machine, and the way between them: 40 ms for an answer there and back, 30 for an event."""

    def __init__(self, machine_off: int = 0, speed: float = 1.0) -> None:
        self.time = START
        self.asleep = 0
        """How far our monotonic clock is behind."""
        self.machine_off = machine_off
        self.sync = ClockSync(speed)

    @property
    def ours_ns(self) -> int:
        return (self.time - START - self.asleep + 1_000_000) * MS

    @property
    def machine(self) -> int:
        return self.time + self.machine_off

    def answer(self, wrong: int = 0, way: int = 40) -> None:
        sent, stated = self.ours_ns, self.time + way // 2 + wrong
        self.time += way
        self.sync.take_answer(stated, sent, self.ours_ns, self.machine)

    def event(self, wrong: int = 0, late: int = 30) -> None:
        self.time += 100
        self.sync.take_event(self.time - late + wrong, self.ours_ns, self.machine)

    def events(self, count: int = 2 * KEPT) -> None:
        for _ in range(count):
            self.event()

    def begin(self) -> "World":
        for _ in range(ANSWERS_MIN):
            self.answer()
        self.events()
        assert self.off == 0
        return self

    @property
    def off(self) -> int:
        """How wrong the calendar is, ms."""
        return self.sync.clock.now(self.ours_ns) - self.time

    @property
    def off_for_rest(self) -> int:
        return self.sync.rest_now(self.ours_ns) - self.time


@pytest.mark.parametrize("wrong", WRONG)
def test_one_wrong_answer_moves_nothing_and_is_asked_about_again(wrong: int) -> None:
    world = World().begin()
    world.answer(wrong)
    assert world.sync.unconfirmed
    assert (world.off, world.off_for_rest) == (0, 0)
    world.events()
    assert (world.off, world.off_for_rest) == (0, 0)
    world.answer()
    assert not world.sync.unconfirmed
    # Once again, at another time, is once again.
    world.time += 10 * MINUTE
    world.answer(wrong)
    world.events()
    world.answer(wrong)
    assert abs(world.off) <= 10 * MINUTE // DRIFT


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("machine_off", [0, 7 * HOUR, "wrong"])
def test_a_first_answer_that_is_wrong_is_not_believed(wrong: int, machine_off: int | str) -> None:
    # A machine may be wrong by as much.
    world = World(machine_off if isinstance(machine_off, int) else wrong)
    for index in range(ANSWERS_MIN + 1):
        world.answer(0 if index else wrong)
        assert not world.sync.measured or world.off == 0
    world.events()
    assert world.off == 0


def test_a_first_time_needs_several_answers_and_somebody_else_s_word() -> None:
    world = World()
    world.answer()
    world.answer()
    assert not world.sync.clock.known
    world.answer()
    assert world.off == 0
    world = World(machine_off=HOUR)
    for _ in range(KEPT):
        world.answer()
    assert not world.sync.clock.known
    world.events(EVENTS_MIN - 1)
    assert not world.sync.clock.known
    world.event()
    assert world.sync.measured
    assert world.off == 0


def test_answers_that_all_lie_do_not_win_against_events() -> None:
    world = World().begin()
    for _ in range(20):
        world.answer(6 * HOUR)
        world.event()
        assert (world.off, world.off_for_rest) == (0, 0)
    # Nor does a machine that says the same: once there is a time, it is not asked.
    world.machine_off = 6 * HOUR
    world.answer(6 * HOUR)
    assert world.off == 0
    assert world.sync.counts.total() == 0


@pytest.mark.parametrize("wrong", WRONG)
def test_an_event_of_a_wrong_time_moves_nothing(wrong: int) -> None:
    world = World().begin()
    for _ in range(50):
        world.event(wrong)
        assert world.off == 0
        world.event()
    stated = world.time + wrong
    for _ in range(KEPT):
        world.sync.take_event(stated, world.ours_ns, world.machine)
    assert world.off == 0
    assert world.sync.is_off(world.time + wrong, world.ours_ns) == (abs(wrong) > OFF_MS)


@pytest.mark.parametrize("jump", [6 * HOUR, HOUR, 20_000, -20_000, -6 * HOUR])
@pytest.mark.parametrize("events_first", [True, False])
def test_a_jump_that_answers_and_events_agree_upon_is_followed(jump: int, events_first: bool) -> None:
    world = World().begin()
    world.time += jump
    world.asleep += jump
    assert world.off == -jump
    if events_first:
        world.events()
        assert world.sync.is_off(world.time, world.ours_ns)
        for index in range(ANSWERS_MIN):
            assert world.off == -jump
            assert world.sync.unconfirmed == (index > 0)
            world.answer()
    else:
        for _ in range(ANSWERS_MIN):
            world.answer()
        for _ in range(EVENTS_MIN):
            assert world.off == -jump
            world.event()
    assert (world.off, world.off_for_rest) == (0, 0)
    assert not world.sync.unconfirmed
    assert world.sync.counts["jumps of the exchange's clock"] == 1


def test_a_wrong_answer_in_the_middle_of_a_jump_delays_it_and_no_more() -> None:
    world = World().begin()
    world.time += HOUR
    world.asleep += HOUR
    world.events()
    for wrong in (0, 0, 3 * HOUR, 0):
        world.answer(wrong)
    assert world.off == 0


def test_events_of_a_busy_stream_that_is_late_say_nothing_against_the_clock() -> None:
    world = World().begin()
    for late in (2_500, 900, 6_000, 8_000, 8_000, 8_000, 8_000, 8_000):
        world.event(late=late)
    assert world.off == 0


def test_the_quickest_answer_counts_until_it_is_old() -> None:
    world = World()
    for way in (400, 40, 400):
        world.answer(way=way)
    assert world.sync._error_ns == 20 * MS
    # An answer that may be wrong by 200 ms says nothing while ours cannot be.
    world.answer(way=400, wrong=100)
    assert world.off == 0
    # A clock that runs wrong is put right: 1 in 10,000 of half an hour is 180 ms, and an answer is better than that.
    world.time += HOUR // 2
    world.answer(way=400, wrong=100)
    assert world.off == 100
    assert not world.sync.unconfirmed


def test_a_clock_that_runs_a_little_wrong_is_not_a_jump_and_one_that_runs_very_wrong_is() -> None:
    world = World().begin()
    world.time += HOUR
    # Within 1 in 10,000 of the time since, the two ways' 20 ms, and 50 of the scheduler's.
    world.answer(wrong=HOUR // 10_000 + 80)
    assert not world.sync.unconfirmed
    assert world.off == HOUR // 10_000 + 80
    world = World().begin()
    world.time += HOUR
    world.answer(wrong=HOUR // 10_000 + 100)
    assert world.sync.unconfirmed
    assert world.off == 0


def test_until_it_is_measured_events_that_agree_move_the_clock() -> None:
    world = World(machine_off=DAY)
    world.event(wrong=HOUR)
    assert not world.sync.clock.known
    world.events(EVENTS_MIN)
    assert world.off == -30
    # The least late one counts.
    world.event(late=10)
    assert world.off == -10
    world.event(late=1_000)
    assert world.off == -10
    for wrong in (HOUR, -HOUR):
        world.event(wrong=wrong)
        assert world.off == -10
        world.events()
    world.time -= HOUR
    world.asleep -= HOUR
    world.events()
    assert abs(world.off) < 100
    assert not world.sync.measured
    # Answers that differ from the events by hours do not count, nor one that agrees.
    for _ in range(ANSWERS_MIN):
        world.answer(wrong=HOUR)
    world.answer()
    assert not world.sync.measured
    world.answer()
    world.answer()
    assert world.sync.measured
    assert world.off == 0
    # From here on events do not move it.
    for _ in range(KEPT):
        world.event(wrong=2_000)
    assert world.off == 0


def test_this_machine_s_clock_makes_the_first_event_enough() -> None:
    world = World(machine_off=1_000)
    world.event()
    assert world.off == -30
    stranger = World(machine_off=10_000)
    stranger.event()
    assert not stranger.sync.clock.known


def test_in_a_replay_one_answer_is_the_beginning_and_events_alone_move_the_time() -> None:
    world = World(machine_off=DAY, speed=0.0)
    world.answer()
    begin = world.sync.clock.now(world.ours_ns)
    assert begin == START + 20
    world.time += HOUR
    world.answer()
    assert world.sync.clock.now(world.ours_ns) == begin
    assert not world.sync.unconfirmed
    assert world.sync.move_to(begin + 5, world.ours_ns)
    assert not world.sync.move_to(begin + 5, world.ours_ns)
    assert world.sync.clock.now(world.ours_ns) == begin + 5


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_said_by_a_few_the_calendar_is_the_exchange_s(seed: int) -> None:
    source = random.Random(seed)
    world = World(source.choice((0, 0, 5 * HOUR, -DAY)))
    for _ in range(source.choice((0, 3, 6))):
        world.event()
    liar = 0
    for step in range(300):
        if source.random() < 0.05:
            world.time += source.randrange(2 * MINUTE)
        # A liar is followed by as many honest ones as are kept.
        wrong = source.choice(WRONG) if step - liar > KEPT and source.random() < 0.3 else 0
        liar = step if wrong else liar
        if source.random() < 0.4:
            world.answer(wrong, way=source.randrange(10, 300))
        else:
            world.event(wrong, late=source.randrange(5, 900))
        if world.sync.clock.known:
            assert -1_000 < world.off < (250 if world.sync.measured else OFF_MS), (seed, step)
    world.events()
    for _ in range(KEPT):
        world.answer()
    assert world.sync.measured
    assert abs(world.off) < 250
