"""What comes into host memory is there when it is asked for: whoever wants it waits for it, and nobody else."""

import threading

import torch

from bitlora.forward.host import Coming, fetch


def test_on_a_cpu_it_is_there():
    first, second = torch.arange(3.0), torch.ones(2)
    coming = fetch([first, second], lambda copies: [copy.tolist() for copy in copies])
    assert coming.copied is None
    assert coming.arrived() == [[0.0, 1.0, 2.0], [1.0, 1.0]]


def test_it_is_made_only_when_the_copies_are_there():
    there, asked = threading.Event(), []

    class Copied:
        def synchronize(self):
            asked.append(threading.current_thread().name)
            there.wait()

    found = []
    coming = Coming(lambda: there.is_set(), Copied())
    writer = threading.Thread(target=lambda: found.append(coming.arrived()), name="writer")
    writer.start()
    there.set()
    writer.join()
    assert (found, asked) == ([True], ["writer"])
