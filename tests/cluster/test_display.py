"""Lines about steps on workers."""

import time
from types import SimpleNamespace

from hw1lib.cluster.display import Board


def test_lines_say_where_steps_run_how_fast_and_how_long(capsys, monkeypatch):
    """Under the label that a step has in the report; a step that begins anew elsewhere is timed anew."""
    board = Board(SimpleNamespace(), "topic")
    board.add("pretrain, seed 1", 100)
    board.add("finetune-C", 10)

    def event(record, at, label="pretrain, seed 1"):
        monkeypatch.setattr(time, "monotonic", lambda: at)
        board._handle((0, {"label": label, "place": "0 on node7", "record": record}))

    def epoch(number):
        line = f"pretrain  epoch {number}/4  loss 1"
        return {"label": "pretrain", "line": line, "epoch": number, "epochs": 4, "numbers": {"loss": 1.0}}

    event(None, 0.0)
    event(epoch(1), 10.0)
    event({"label": "pretrain", "line": "pretrain: epoch 9/9 collapsed"}, 11.0)
    event(epoch(2), 12.0)
    event(None, 20.0)
    event(epoch(2), 21.0)
    board.end("pretrain, seed 1", "done")
    event(epoch(4), 30.0)  # too late
    assert capsys.readouterr().out.splitlines() == [
        "  pretrain, seed 1: runs on worker 0 on node7",
        "  pretrain, seed 1  epoch 1/4  loss 1",
        "  pretrain, seed 1: epoch 9/9 collapsed",
        "  pretrain, seed 1  epoch 2/4  loss 1  50 images/s  0:04 left",
        "  pretrain, seed 1: runs on worker 0 on node7",
        "  pretrain, seed 1  epoch 2/4  loss 1",
        "  pretrain, seed 1: done",
    ]
