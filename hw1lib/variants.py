"""What the fine-tuning table compares: settings A–E and the controls that they must beat, each defined once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: A … E, or of a control.
        pretraining: the step that the backbone comes from, pretrain or pretrain-supervised; None: random weights.
        frozen: whether the backbone stays as it is.
        trained: what learns, in words.
    """

    name: str
    pretraining: str | None
    frozen: bool
    trained: str

    @property
    def step(self):
        """The step behind the row."""
        return f"{'finetune' if self.name in SETTINGS else 'control'}-{self.name}"


ROWS = {
    row.name: row
    for row in (
        Row("A", None, False, "backbone and head"),
        Row("B", "pretrain-supervised", False, "backbone and head"),
        Row("C", "pretrain", False, "backbone and head"),
        Row("D", "pretrain-supervised", True, "head; backbone frozen"),
        Row("E", "pretrain", True, "head; backbone frozen"),
        Row("random", None, True, "head; backbone frozen"),
        Row("knn", "pretrain", True, "nothing: k-NN on frozen features"),
        Row("colour", None, True, "head on colour mean and deviation"),
        Row("simple", None, True, "a simple classifier of colour and texture"),
    )
}
SETTINGS = ("A", "B", "C", "D", "E")
