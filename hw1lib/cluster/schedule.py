"""Simulate how long a report takes on several workers, from how long its steps took before."""

import subprocess
import sys
import time

from hw1lib import paths
from hw1lib.chapters import style

WORKERS = (1, 2, 4, 8)


def remaining(book, startup):
    """Return the steps that are not done (all steps if every one is), in dependency order.

    Args:
        book: workbook.Workbook.
        startup: seconds to start the process of a step.

    Returns:
        {label: (expected seconds with startup, labels of the steps that it waits for)}; a step of unknown duration
        counts as 0 seconds.
    """
    planned = list(book.planned())
    chosen = [step for step in planned if step[1].status(step[2]) != "done"] or planned
    labels = {steps.key(name): label for label, steps, name in chosen}
    tasks = {}
    for label, steps, name in chosen:
        step = steps.step(name)
        keys = [steps.key(other) for other in {*step.upstream, step.check} - {name}]
        tasks[label] = startup + (steps.expected(name) or 0.0), [labels[key] for key in keys if key in labels]
    return tasks


def path_lengths(tasks):
    """Return the length of the longest chain that begins with each step, {label: seconds}."""
    lengths = {}
    for label in reversed(tasks):  # a step comes after those that it waits for
        longest = max((lengths[other] for other in lengths if label in tasks[other][1]), default=0.0)
        lengths[label] = tasks[label][0] + longest
    return lengths


def critical_path(tasks):
    """Return the labels of the longest chain of steps, in order; more workers cannot shorten it."""
    lengths, path, candidates = path_lengths(tasks), [], list(tasks)
    while candidates:
        path.append(max(candidates, key=lengths.get))
        candidates = [label for label, (_, upstream) in tasks.items() if path[-1] in upstream]
    return path


def simulate(tasks, workers):
    """Schedule tasks greedily: a free worker takes the ready step that begins the longest chain.

    Args:
        tasks: as returned by `remaining`.
        workers: number of workers.

    Returns:
        {label: (worker, start, end)} in seconds.
    """
    lengths, free, plan = path_lengths(tasks), [0.0] * workers, {}
    while len(plan) < len(tasks):
        now = min(free)
        starts = {
            label: max([now, *(plan[other][2] for other in upstream)])
            for label, (_, upstream) in tasks.items()
            if label not in plan and plan.keys() >= set(upstream)
        }
        label, worker = min(starts, key=lambda label: (starts[label], -lengths[label])), free.index(now)
        plan[label] = worker, starts[label], starts[label] + tasks[label][0]
        free[worker] = plan[label][2]
    return plan


def makespan(plan):
    """Return the seconds until the last step of a plan ends."""
    return max((end for *_, end in plan.values()), default=0.0)


def summary(book, workers):
    """Simulate the remaining steps on 1, 2, 4, 8 and `workers` workers.

    Returns:
        Lines for a terminal; the last is the path of a figure of the schedule on `workers` workers.
    """
    started = time.time()  # each step on a worker starts a process, which imports the library
    subprocess.run([sys.executable, "-c", "import hw1lib.workbook"], cwd=paths.ROOT, check=True)
    startup = time.time() - started
    tasks, path = remaining(book, startup), book.out / "figures" / "schedule.png"
    style.save(gantt(tasks, workers), path)
    return [*table(tasks, workers, startup), str(path)]


def table(tasks, workers, startup):
    """Return lines of text: seconds and limit for each number of workers, then the critical path."""
    work, path = sum(seconds for seconds, _ in tasks.values()), critical_path(tasks)
    total, longest = work - startup * len(tasks), sum(tasks[label][0] for label in path)
    lines = [f"In this process: {total:.0f} s. On workers, each step needs {startup:.1f} s more to start its process."]
    lines += [f"{'workers':>7}{'seconds':>10}{'speed-up':>10}{'busy':>7}   limited by"]
    for count in sorted({*WORKERS, workers}):
        if seconds := makespan(simulate(tasks, count)):
            limit = "the critical path" if seconds <= 1.02 * longest else "the work"
            speedup, busy = total / seconds, work / seconds / count
            lines.append(f"{count:>7}{seconds:>10.0f}{speedup:>10.2f}{busy:>7.0%}   {limit}")
    return [*lines, f"Critical path, {longest:.0f} s: {' → '.join(path)}"]


def gantt(tasks, workers):
    """Draw the schedule on `workers` workers: a bar for each step, red on the critical path."""
    plan, path = simulate(tasks, workers), set(critical_path(tasks))
    figure, (axis,) = style.canvas(1, 1, (7.2, min(workers, 12) + 0.8))
    for label, (worker, start, end) in plan.items():
        axis.barh(worker, end - start, left=start, height=0.9, color="C3" if label in path else "C0", edgecolor="white")
        if end - start > 0.015 * makespan(plan) and workers < 14:  # wide enough for vertical text
            text = dict(ha="center", va="center", rotation=90, fontsize=6, color="white")
            axis.text((start + end) / 2, worker, label.replace(", seed", ""), **text)
    axis.set_yticks(range(workers), [f"worker {number}" for number in range(workers)])
    axis.invert_yaxis()
    axis.set_xlabel("seconds (red: the critical path)")
    return figure
