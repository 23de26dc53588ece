"""The settings A–E of fine-tuning and their controls."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One setting or control: a row of tables/finetune.csv.

    Attributes:
        name: A … E, or the name of a control.
        pretraining: step that trains the backbone, pretrain or pretrain-supervised; None: random or no backbone.
        frozen: whether the backbone is frozen.
        trained: description of the trained part, for the report.
    """

    name: str
    pretraining: str | None
    frozen: bool
    trained: str

    @property
    def step(self):
        """Name of the step that trains or fits this row."""
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
