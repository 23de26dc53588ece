"""How long a report would take on so many workers: the simulation."""

import pytest

from hw1lib.cluster import schedule

TASKS = {"a": (4.0, []), "b": (3.0, []), "c": (2.0, ["a"]), "d": (1.0, ["a", "b"]), "e": (None, ["d"])}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_simulated_plan_keeps_order_and_workers(workers):
    plan = schedule.simulate(TASKS, workers)
    assert plan.keys() == TASKS.keys()
    for label, (worker, start, end) in plan.items():
        seconds, before = TASKS[label]
        assert end - start == (seconds or 0) and 0 <= worker < workers
        assert all(plan[other][2] <= start for other in before)
        others = [times for other, (at, *times) in plan.items() if at == worker and other != label]
        assert all(end <= since or until <= start for since, until in others)
    assert schedule.makespan(plan) == {1: 10, 2: 6, 3: 6}[workers]


def test_the_critical_path_is_what_no_worker_shortens():
    assert schedule.levels(TASKS) == {"a": 6, "b": 4, "c": 2, "d": 1, "e": 0}
    assert schedule.critical_path(TASKS) == ["a", "c"]
    lines = schedule.in_words(TASKS, 3)
    assert [line.split()[0] for line in lines[2:-1]] == ["1", "2", "3", "4", "8"]
    assert "the work" in lines[2] and "the critical path" in lines[3] and "a → c" in lines[-1]
    begun = schedule.in_words(TASKS, 3, start=2.0)
    assert (
        "10 s; on workers each step begins with 2.0 s" in begun[0]
        and "20" in begun[2]
        and "11 s: a → d → e" in begun[-1]
    )
