"""File systems that do not have a call: the same result without it, or one sentence.

All calls of a kind are refused for a whole job, in each way in which file systems refuse them: `calls.REFUSED`. Which a
job must do without is `calls.DISPENSABLE`.
"""

from __future__ import annotations

import pytest

from tests.faults.test_injection import injected


@pytest.mark.parametrize("name", ["hf in place of another", "ranks to ranks"])
def test_a_call_that_is_not_there(name, room):
    found = injected(room, name, "--refused")
    assert not found["wrong"], "\n\n".join(found["wrong"])
    assert found["statuses"]["0"] > 15
