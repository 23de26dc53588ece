"""What one sees of steps on workers: a live table in a terminal, a line an event elsewhere."""

import contextlib
import re
import time

EPOCH = re.compile(r" epoch (\d+)/(\d+) ")


class Board:
    """A live table of the steps; where the output is no terminal, a line an event.

    Args:
        client: distributed.Client.
        where: what the workers are called.
        topic: of the events that carry what steps print.
    """

    def __init__(self, client, where, topic):
        from rich.console import Console
        from rich.live import Live

        self.client, self.topic, self.rows = client, topic, {}
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, refresh_per_second=2, get_renderable=self.table)
        self.shows = self.console.is_terminal
        print(f"Workers {where}\nWatch   {client.dashboard_link}", flush=True)

    def __enter__(self):
        self.client.subscribe_topic(self.topic, self._heard)
        if self.shows:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.shows:
            self.live.stop()
        with contextlib.suppress(Exception):  # its scheduler may be gone
            self.client.unsubscribe_topic(self.topic)

    def add(self, label, images):
        self.rows[label] = {"state": "waits", "place": "", "epoch": "", "images": images, "began": None, "done": (0, 0)}

    def end(self, label, state):
        self.rows[label]["state"] = state
        self._say(f"{label}: {state}")

    def _heard(self, event):
        message = event[1]
        row = self.rows.get(message["label"])
        if row is None or row["state"] == "done":
            return
        if message["line"] is None:
            row |= {"state": "runs", "place": message["place"], "began": None, "done": (0, 0)}
            self._say(f"{message['label']}: runs on worker {message['place']}")
            return
        if found := EPOCH.search(message["line"]):
            now, done = time.monotonic(), tuple(map(int, found.groups()))
            row["began"] = row["began"] or (now, done[0])
            row |= {"done": done, "at": now}
            self._say(f"{message['label']} {message['line'][found.start() :]}")

    def _say(self, line):
        if not self.shows:
            print(f"  {line}", flush=True)

    def table(self):
        """The rows as a rich table: what runs first, then what waits, then how many are done."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("step", "where", "epoch", "images/s", "remaining"):
            table.add_column(name, no_wrap=True)
        order = {"runs": 0, "failed": 1, "waits": 2}
        shown = [(label, row) for label, row in list(self.rows.items()) if row["state"] != "done"]
        for label, row in sorted(shown, key=lambda pair: order.get(pair[1]["state"], 3))[:20]:
            table.add_row(label, row["place"] if row["state"] == "runs" else row["state"], *self._progress(row))
        done = sum(row["state"] == "done" for row in list(self.rows.values()))
        table.add_row(f"{done} of {len(self.rows)} done", "", "", "", "")
        return table

    def _progress(self, row):
        """Epoch, images a second and the time that is left, as text."""
        epoch, epochs = row["done"]
        if row["state"] != "runs" or not epochs:
            return "", "", ""
        since, first = row["began"]
        if epoch == first:
            return f"{epoch}/{epochs}", "", ""
        each = (row["at"] - since) / (epoch - first)
        speed = f"{row['images'] / each:.0f}" if row["images"] else ""
        left = max(0, each * (epochs - epoch) - (time.monotonic() - row["at"]))
        return f"{epoch}/{epochs}", speed, f"{int(left) // 60}:{int(left) % 60:02d}"


def images_of(data, step):
    """How many images an epoch of a step has, for images/s; 0 where it has none."""
    return len(getattr(getattr(data, f"problem{step.problem}"), step.data[0].removeprefix("tiles_"), ()))
