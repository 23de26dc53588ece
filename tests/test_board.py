"""The live table of steps on workers."""

import time
from types import SimpleNamespace

from hw1lib.board import Board


def test_the_board_says_where_steps_run_how_fast_and_how_long():
    board = Board(SimpleNamespace(dashboard_link="http://here"), "local:2", "topic")
    board.add("pretrain", 100)
    board.add("finetune-C", 10)
    event = {"label": "pretrain", "place": "0 on here", "line": None}
    board._heard((0, event))
    for epoch in (1, 2):
        board._heard((0, event | {"line": f"pretrain  epoch {epoch}/4  loss 1"}))
        board.rows["pretrain"]["at"] = board.rows["pretrain"]["began"][0] + 2.0 * (epoch - 1)
    board.rows["pretrain"]["at"] = time.monotonic()
    board.rows["pretrain"]["began"] = (time.monotonic() - 2.0, 1)
    epoch, speed, left = board._progress(board.rows["pretrain"])
    assert (epoch, speed) == ("2/4", "50") and left in ("0:03", "0:04")
    board._heard((0, event))  # its worker died: it begins anew elsewhere
    assert board._progress(board.rows["pretrain"]) == ("", "", "") and board.table().row_count == 3
    board.end("finetune-C", "done")
    table = board.table()
    assert table.row_count == 2 and list(table.columns[0].cells) == ["pretrain", "1 of 2 done"]
