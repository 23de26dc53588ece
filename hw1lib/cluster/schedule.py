"""How long a report takes with so many workers, from what its steps took before: a simulation."""

import heapq

WORKERS = (1, 2, 4, 8)


def tasks(book, of=None):
    """Steps with what they wait for: {label: (expected seconds or None, labels that come before)}, in their order.

    Args:
        book: workbook.Workbook.
        of: their labels; None: those that are not done, or all where none is left.
    """
    planned = list(book.planned())
    keys = {label: steps.key(name) for label, steps, name in planned}
    undone = [label for label, steps, name in planned if steps.status(name) != "done"]
    chosen, found = of or undone or list(keys), {}
    for label, steps, name in planned:
        if label in chosen:
            step = steps.step(name)
            needs = {steps.key(other) for other in {*step.upstream, step.check} - {name}}
            found[label] = steps.expected(name), [other for other in chosen if keys[other] in needs]
    return found


def begun(tasks, start):
    """The same tasks, each with so many seconds more until its process has begun."""
    return {label: ((seconds or 0.0) + start, before) for label, (seconds, before) in tasks.items()}


def levels(tasks):
    """How long the longest chain is that begins with each step: {label: seconds}. The longest goes first."""
    after, found = _after(tasks), {}

    def level(label):
        if label not in found:
            found[label] = (tasks[label][0] or 0.0) + max(map(level, after[label]), default=0.0)
        return found[label]

    return {label: level(label) for label in tasks}


def critical_path(tasks):
    """The chain of steps that no number of workers makes shorter: their labels, in order."""
    level, after, path, following = levels(tasks), _after(tasks), [], list(tasks)
    while following:
        path.append(max(following, key=level.get))
        following = after[path[-1]]
    return path


def _after(tasks):
    return {label: [other for other, (_, before) in tasks.items() if label in before] for label in tasks}


def simulate(tasks, workers):
    """Gives each worker that is free, of the steps that nothing holds up, the one that begins the longest chain.

    Args:
        tasks: as of `tasks`; what was never measured takes no time.

    Returns:
        {label: (worker, start, end)} in seconds.
    """
    order = sorted(tasks, key=levels(tasks).get, reverse=True)
    waits = {label: set(tasks[label][1]) for label in order}
    free, running, plan, now = list(range(workers)), [], {}, 0.0
    while len(plan) < len(tasks):
        for label in [label for label, before in waits.items() if not before][: len(free)]:
            worker = heapq.heappop(free)
            end = now + (tasks[label][0] or 0.0)
            plan[label] = worker, now, end
            heapq.heappush(running, (end, worker, label))
            del waits[label]
        now, worker, label = heapq.heappop(running)
        heapq.heappush(free, worker)
        for before in waits.values():
            before.discard(label)
    return plan


def makespan(plan):
    """Seconds until the last step of a plan ends."""
    return max((end for *_, end in plan.values()), default=0.0)


def in_words(tasks, workers, start=0.0):
    """A table of makespans, the critical path and what bounds the rest, as lines for a terminal."""
    total = sum(seconds or 0.0 for seconds, _ in tasks.values())
    tasks = begun(tasks, start)
    path = critical_path(tasks)
    longest = sum(tasks[label][0] for label in path)
    lines = [f"here, one after the other, {total:.0f} s; on workers each step begins with {start:.1f} s of its process"]
    lines += [f"{'workers':>7}{'seconds':>10}{'times as fast':>15}{'busy':>7}   bound by"]
    for count in sorted({*WORKERS, workers}):
        seconds = makespan(simulate(tasks, count))
        bound = "the critical path" if seconds <= 1.02 * longest else "the work"
        if seconds:
            share = (total + start * len(tasks)) / seconds / count
            lines.append(f"{count:>7}{seconds:>10.0f}{total / seconds:>15.2f}{share:>7.0%}   {bound}")
    lines.append(f"critical path, {longest:.0f} s: {' → '.join(path)}")
    return lines


def figure(tasks, workers):
    """The plan for so many workers, a bar a step."""
    from hw1lib.chapters.style import canvas

    plan, path = simulate(tasks, workers), set(critical_path(tasks))
    drawn, (axis,) = canvas(1, 1, (7.2, min(workers, 12) + 0.8))
    for label, (worker, start, end) in plan.items():
        axis.barh(worker, end - start, left=start, height=0.9, color="C3" if label in path else "C0", edgecolor="white")
        if end - start > 0.015 * makespan(plan) and workers < 14:  # room for a line of text, from bottom to top
            at = dict(ha="center", va="center", rotation=90, fontsize=6, color="white")
            axis.text((start + end) / 2, worker, label.replace(", seed", ""), **at)
    axis.set_yticks(range(workers), [f"worker {number}" for number in range(workers)])
    axis.invert_yaxis()
    axis.set_xlabel("seconds (red: the critical path)")
    return drawn
