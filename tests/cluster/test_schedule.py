"""The simulation of a report on several workers."""

import pytest

from hw1lib.cluster import schedule

TASKS = {"a": (4.0, []), "b": (3.0, []), "c": (2.0, ["a"]), "d": (1.0, ["a", "b"]), "e": (0.0, ["d"])}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_plan_respects_dependencies_and_runs_one_step_at_a_time_on_a_worker(workers):
    plan = schedule.simulate(TASKS, workers)
    assert plan.keys() == TASKS.keys()
    for label, (worker, start, end) in plan.items():
        seconds, upstream = TASKS[label]
        assert end - start == seconds and 0 <= worker < workers
        assert all(plan[other][2] <= start for other in upstream)
        others = [times for other, (own, *times) in plan.items() if own == worker and other != label]
        assert all(end <= other_start or other_end <= start for other_start, other_end in others)
    assert schedule.makespan(plan) == {1: 10, 2: 6, 3: 6}[workers]


def test_the_longest_chain_starts_first():
    tasks = {"a": (1.0, []), "b": (1.0, []), "c": (1.0, []), "d": (2.0, ["c"])}
    assert schedule.makespan(schedule.simulate(tasks, 2)) == 3


def test_the_critical_path_is_the_longest_chain_of_steps():
    assert schedule.path_lengths(TASKS) == {"a": 6, "b": 4, "c": 2, "d": 1, "e": 0}
    assert schedule.critical_path(TASKS) == ["a", "c"]
    lines = schedule.table(TASKS, 3, 0.0)
    assert [line.split()[0] for line in lines[2:-1]] == ["1", "2", "3", "4", "8"]
    assert "the work" in lines[2] and "the critical path" in lines[3] and "a → c" in lines[-1]
    tasks = {label: (seconds + 2, upstream) for label, (seconds, upstream) in TASKS.items()}
    lines = schedule.table(tasks, 3, 2.0)  # with the time that each process needs to start
    assert "10 s. On workers, each step needs 2.0 s more" in lines[0]
    assert "20" in lines[2] and "11 s: a → d → e" in lines[-1]
