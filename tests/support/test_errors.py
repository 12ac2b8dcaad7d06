"""What errors say."""

import re

import pytest

from lightning_ppo.support.errors import described


def bare(value):
    assert value != 2


def reworded(value):
    raise ValueError(f"two\nlines of {value}")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: exec(compile("assert 2 > 3", "env.py", "exec")), r"AssertionError:  ?\(?.*env\.py:1\)"),
        (lambda: bare(2), r"AssertionError: .*2"),
        (lambda: reworded(1), "ValueError: two lines of 1"),
        (lambda: [].pop(), "IndexError: pop from empty list"),
    ],
    ids=["compiled", "bare", "lines", "message"],
)
def test_an_error_without_a_message_names_the_line_that_raised_it(call, said):
    with pytest.raises((AssertionError, ValueError, IndexError)) as caught:
        call()
    assert re.fullmatch(said, described(caught.value))


def test_an_error_that_was_never_raised_is_its_type():
    assert described(KeyError()) == "KeyError"
