"""What several processes make is what one makes, in its order; and none of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest

from bitlora.tokenized import processes
from bitlora.tokenized.processes import each_made

SECONDS = 60.0
WHO = "(__import__('time').sleep(0.002), __import__('os').getpid(), {})[1:]"
"""Expressions, since `eval` is a function that every process knows."""


def numbered(count: int) -> Iterator[str]:
    return (WHO.format(number) for number in range(count))


def until_another(made: Iterator[tuple[int, int]]) -> tuple[int, list[int]]:
    """The first other process of which something comes, and the numbers up to that."""
    numbers = []
    for pid, number in made:
        numbers.append(number)
        if pid != os.getpid():
            return pid, numbers
    raise AssertionError("nothing was made elsewhere")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + SECONDS
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_what_others_make_comes_in_its_place() -> None:
    made = each_made(eval, numbered(20_000), 2)
    other, before = until_another(made)
    after = list(islice(made, 100))
    made.close()
    assert [*before, *(number for _, number in after)] == list(range(len(before) + 100))
    assert gone(other)


def test_no_more_is_read_than_can_be_made_soon() -> None:
    read = []

    def things() -> Iterator[str]:
        for number, thing in enumerate(numbered(20_000)):
            read.append(number)
            yield thing

    made = each_made(eval, things(), 1)
    _, before = until_another(made)
    for count, _ in enumerate(islice(made, 50), len(before) + 1):
        assert len(read) - count <= 2 * processes.AHEAD
    made.close()


def test_what_a_process_took_with_it_is_made_here() -> None:
    made = each_made(eval, numbered(20_000), 1)
    other, before = until_another(made)
    os.kill(other, signal.SIGKILL)
    after = list(islice(made, 200))
    made.close()
    assert [number for _, number in after] == list(range(len(before), len(before) + 200))
    assert {pid for pid, _ in after[-100:]} == {os.getpid()}


def test_an_error_comes_in_its_turn() -> None:
    found: list[tuple[int, int]] = []

    def things() -> Iterator[str]:
        for number, thing in enumerate(numbered(20_000)):
            others = {pid for pid, _ in found} - {os.getpid()}
            yield "1 / 0" if len(others) and number % 2 else thing

    def keep() -> None:
        for each in each_made(eval, things(), 1):
            found.append(each)

    with pytest.raises(ZeroDivisionError):
        keep()
    assert len({pid for pid, _ in found}) == 2
    assert [number for _, number in found] == list(range(len(found)))


def test_messages_larger_than_a_pipe_do_not_wait_for_each_other() -> None:
    large = f"({WHO.format(0)}[0], 'x' * {3 * processes.PIPE}, '{'y' * 3 * processes.PIPE}')"
    made = each_made(eval, (large for _ in range(2000)), 1)
    until_another((pid, len(one) - len(other)) for pid, one, other in made)
    assert [len(one) for _, one, _ in islice(made, 10)] == [3 * processes.PIPE] * 10
    made.close()


def test_a_function_that_cannot_be_sent_is_called_here() -> None:
    assert list(each_made(lambda number: number + 1, range(5), 2)) == [1, 2, 3, 4, 5]
    assert list(each_made(str, [], 2)) == []


def test_a_process_that_is_killed_leaves_none_behind() -> None:
    program = (
        "import os\n"
        "from bitlora.tokenized.processes import each_made\n"
        f"things = ({WHO!r}.format(number) for number in range(10**9))\n"
        "said = False\n"
        "for pid, number in each_made(eval, things, 1):\n"
        "    if pid != os.getpid() and not said:\n"
        "        said = not print(pid, flush=True)\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        other = int(process.stdout.readline())
        process.kill()
    assert gone(other)
