"""What happens to steps on workers, as one line per event."""

import contextlib
import time

from hw1lib import progress


class Board:
    """Print a line where a step starts, after each of its epochs, and where it ends.

    Args:
        client: distributed.Client.
        topic: of the events that workers log: dicts of label, place and record, None where the step starts.
    """

    def __init__(self, client, topic):
        self.client, self.topic = client, topic
        self._images = {}  # label of each step that has not ended -> images of an epoch
        self._started = {}  # label -> time and number of the first epoch that this run of the step has finished

    def __enter__(self):
        self.client.subscribe_topic(self.topic, self._handle)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self.client.unsubscribe_topic(self.topic)

    def add(self, label, images):
        """Expect a step, with the number of images in an epoch of it; 0 where it has none."""
        self._images[label] = images

    def end(self, label, state):
        del self._images[label]
        progress.show(f"  {label}: {state}")

    def _handle(self, event):
        label, record = event[1]["label"], event[1]["record"]
        images = self._images.get(label)
        if images is None:
            return
        if record is None:
            self._started.pop(label, None)
            progress.show(f"  {label}: runs on worker {event[1]['place']}")
        else:
            progress.show(f"  {progress.relabel(record, label)['line']}{self._pace(label, record, images)}")

    def _pace(self, label, record, images):
        """Images a second and the time left, from the second epoch on."""
        epoch, now = record.get("epoch", 0), time.monotonic()
        since, first = self._started.setdefault(label, (now, epoch)) if epoch else (now, epoch)
        if epoch == first:
            return ""
        seconds = (now - since) / (epoch - first)
        left = round(seconds * (record["epochs"] - epoch))
        speed = f"  {images / seconds:.0f} images/s" if images else ""
        return f"{speed}  {left // 60}:{left % 60:02d} left"


def images_of(data, step):
    """How many images an epoch of a step has; 0 where it has none."""
    return len(getattr(getattr(data, f"problem{step.problem}"), step.data[0].removeprefix("tiles_"), ()))
