"""Tasks reach whoever is there, come back from whoever is gone, and are not done for ever."""

import asyncio
from collections import Counter

from velatura.runtime.sweep.plan import Order, Task
from velatura.runtime.sweep.queue import Queue
from velatura.runtime.sweep.render import Result
from velatura.runtime.sweep.workers import Gone, Refused, drive


def tasks(count, groups=1):
    return [Task(n, f"key{n}", n * groups // count, {}) for n in range(count)]


class Hand:
    """A worker that vanishes, or is away, when `fate(what, how often)` says so by an exception."""

    def __init__(self, name, fate=lambda what, times: None, patience=5.0, pause=0.0):
        self.name, self.fate, self.patience, self.pause = name, fate, patience, pause
        self.times, self.done = Counter(), []

    def _live(self, what):
        self.times[what] += 1
        self.fate(what, self.times[what])

    async def start(self):
        self._live("start")

    async def do(self, order):
        await asyncio.sleep(self.pause)
        self._live("do")
        self.done.append(order.task)
        return Result(order.task.key, [], None, 0.0, 0.0, self.name)

    async def close(self):
        pass


def driven(queue, *hands):
    stored, told = [], []
    reasons = asyncio.run(
        drive(
            queue, hands, lambda task: Order(task, {}, None, []), lambda task, _: stored.append(task.key), told.append
        )
    )
    return stored, told, reasons


def fail(kind, when):
    def fate(what, times):
        if when(what, times):
            raise kind(f"{what} {times}")

    return fate


def test_a_lost_task_is_done_by_another():
    queue = Queue(tasks(9), 3)
    flaky = Hand("flaky", fail(Gone, lambda what, times: what == "do" and times % 2))
    stored, told, reasons = driven(queue, flaky, Hand("steady"))
    assert sorted(stored) == sorted(f"key{n}" for n in range(9)) and not queue.failed and queue.left == 0
    assert reasons == [] and any("its task is done again" in line for line in told)


def test_a_task_that_ends_every_worker_is_given_up():
    def deadly(what, times):
        if what == "do":
            raise Gone("signal 9")

    queue = Queue(tasks(1), 3)
    stored, _, _ = driven(queue, Hand("a", deadly), Hand("b", deadly))
    assert stored == [] and queue.left == 0
    assert "its worker was gone 3 times, at last: signal 9" in queue.failed["key0"][1]


def test_who_refuses_is_left_out_and_says_so_once():
    queue = Queue(tasks(4), 3)
    picky = Hand("picky", fail(Refused, lambda what, times: what == "do"))
    stored, told, _ = driven(queue, picky, Hand("willing", pause=0.01))
    assert len(stored) == 4 and [line for line in told if "picky" in line] == [
        "picky refuses the workflow and is left out: do 1"
    ]


def test_when_nobody_is_left_the_reasons_are_said():
    queue = Queue(tasks(2), 3)
    away = Hand("away", fail(Gone, lambda what, times: what == "start"), patience=0.0)
    stored, _, reasons = driven(queue, away, Hand("picky", fail(Refused, lambda what, times: what == "do")))
    assert stored == [] and queue.left == 2
    assert sorted(reasons) == ["away is not there: start 1", "picky refuses the workflow: do 1"]


def test_who_comes_back_works_on():
    queue = Queue(tasks(3), 3)
    back = Hand("back", fail(Gone, lambda what, times: what == "start" and times == 1))
    stored, told, _ = driven(queue, back)
    assert len(stored) == 3 and told == ["back is not there (start 1); it is tried again"]


def test_the_end_does_not_wait_for_who_is_not_there_yet():
    class Never(Hand):
        async def start(self):
            await asyncio.Event().wait()

    stored, _, _ = driven(Queue(tasks(3), 3), Never("never"), Hand("here"))
    assert len(stored) == 3


def test_a_worker_keeps_to_what_it_has_loaded():
    queue = Queue(tasks(12, groups=3), 3)
    hands = [Hand("a", pause=0.001), Hand("b", pause=0.001)]
    driven(queue, *hands)
    changes = sum(x.group != y.group for hand in hands for x, y in zip(hand.done, hand.done[1:], strict=False))
    assert changes <= 2
