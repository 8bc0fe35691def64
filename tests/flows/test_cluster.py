"""Starting workers: one that dies while it starts costs another try, not the night."""

import pytest

from flows.cluster import started
from flows.console import WorkFailed


def test_a_failed_start_is_tried_again():
    answers = [RuntimeError("Nanny failed to start."), RuntimeError("Nanny failed to start."), "cluster"]

    def make():
        answer = answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    assert started(make) == "cluster" and not answers


def test_a_start_that_never_works_says_so():
    def make():
        raise RuntimeError("Nanny failed to start.")

    with pytest.raises(WorkFailed, match="in 2 tries: Nanny failed to start"):
        started(make, tries=2)
