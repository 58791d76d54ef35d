"""The tests that go past the pooler (see tests/conftest.py, `make test-pooler`), and why.

All others go through it. Tests that start a server of their own are not listed: nothing stands
before that, but see tests/beyond/test_pooler.py.
"""

from __future__ import annotations

# Why, and the names of tests or of whole files.
DIRECT: dict[str, tuple[str, ...]] = {
    "deploying takes a session's lock, and refuses a pooler that shares sessions": (
        "test_migrate.py",
        "test_demo.py",
        "test_hostile_callers.py::test_default_privileges_of_the_owner_open_nothing",
    ),
    "it is about statements prepared in a session": (
        "test_client.py::test_statements_can_be_prepared_and_are_not_unless_asked",
    ),
    "it listens for notifications, which takes a session of one's own": (
        "test_worker.py::test_a_worker_that_listens_is_woken",
        "test_worker.py::test_a_worker_that_listens_asks_so_often_that_it_goes_on_being_woken",
        "test_worker.py::test_its_own_second_try_is_not_left_to_the_poll",
        "test_worker.py::test_of_two_second_tries_neither_is_left_to_the_poll",
        "test_worker.py::test_a_second_try_is_not_forgotten_over_what_comes_before",
        "test_worker.py::test_a_worker_is_woken_whatever_the_encoding_of_its_sessions",
    ),
    "it counts sessions of the server, which are the pooler's": (
        "test_client.py::test_the_client_connects_when_it_is_first_used_and_closes_with_its_block",
        "test_client.py::test_the_name_of_the_application_may_be_given",
        "test_client.py::test_what_the_pool_waits_for_in_vain_is_told",
    ),
    "it reads the statistics that a session keeps of itself": (
        "test_races.py::test_recording_one_of_many_writes_and_locks_its_own_row_only",
    ),
    "it passes options of the server at connecting, which PgBouncer takes from 1.20 on only": (
        "test_readers_progress.py::test_readers_work_at_any_isolation_level_and_lock_nothing",
    ),
    "it makes a temporary table, as people do at a prompt of psql": (
        "test_tour.py",
        "test_hostile_callers.py::test_a_batch_that_no_answer_could_hold_is_refused",
    ),
    "it is about what a session may leave in its own temporary schema or search_path": (
        "test_hostile_callers.py::test_a_temporary_schema_cannot_be_made_by_a_function_of_ours",
        "test_hostile_callers.py::test_no_look_alike_in_the_callers_path_is_ever_called",
    ),
}


def reason(nodeid: str) -> str | None:
    """Why this test goes past the pooler; None if it goes through."""
    name = nodeid.partition("[")[0].removeprefix("tests/")
    for why, names in DIRECT.items():
        if name in names or name.partition("::")[0] in names:
            return why
    return None
