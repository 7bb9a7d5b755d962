"""Work on the main process while the other ranks wait."""

from tests.main_process_child import run_two_ranks


def test_on_main_process_may_exceed_group_timeout():
    """The group times out after 5 s, the work takes 10 s; then the work fails, on both ranks."""
    assert run_two_ranks(timeout_s=280) == [(0, 2, "scored", "no answers"), (1, 2, None, "no answers")]
