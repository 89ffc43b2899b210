"""Messages between the workers of a pack: none is dropped, none arrives twice, whatever the order of sums and takings."""

from hypothesis import given
from hypothesis import strategies as st

from bitlora.engine.mailbox import Mailbox

ACTIONS = st.lists(st.sampled_from(["post", "sum", "take"]), max_size=60)


@given(ACTIONS)
def test_every_message_arrives_once_at_every_worker_in_order(actions):
    first, second = Mailbox(), Mailbox()
    posted, taken = [], {id(first): [], id(second): []}
    for number, action in enumerate([*actions, "sum", "take"]):
        if action == "post":
            first.post(number)
            posted.append(number)
        elif action == "sum":
            collected = first.collect()
            for mailbox in (first, second):
                mailbox.deliver(collected)
        else:
            for mailbox in (first, second):
                taken[id(mailbox)] += mailbox.take()
    assert taken == {id(first): posted, id(second): posted}


def test_two_sums_between_two_takings_keep_both_messages():
    """A pack of two workers lost the commands that came with the first of two sums: a confirming trial is scored twice."""
    mailbox = Mailbox()
    mailbox.post("a stop")
    for _ in range(2):
        mailbox.deliver(mailbox.collect())
    assert mailbox.take() == ["a stop"]
    assert mailbox.take() == []
