"""Sentences computed from results, so that no claim can contradict its table.

"Better" is said only where an exact McNemar test on the same images supports it at 5 %. Rankings
and tests use the last epoch, which nothing was chosen by.
"""

import numpy as np

from hw1lib.data.landcover import SCORED
from hw1lib.results.statistics import mcnemar
from hw1lib.results.tables import percent

LEVEL = 0.05
VISIBLE = 0.0005  # a smaller change of a mIoU does not show in three digits


def collapse(pretrain):
    """Whether pre-training learnt something, and whether its embedding collapsed.

    Args:
        pretrain: metrics of that step.
    """
    verdict = "**has collapsed**" if pretrain["collapsed"] else "has not collapsed"
    before = pretrain["before"]
    text = (
        f"The loss of the last epoch is {pretrain['loss']:.3f} (from 0 to 8; lower is not better "
        f"by itself, a collapsed network reaches 0). The embedding {verdict}: its deviation times "
        f"√d is {pretrain['deviation']:.2f} (0 for a collapsed one; before training "
        f"{before['deviation']:.2f}), its effective rank {pretrain['effective_rank']:.0f} (before "
        f"training {before['effective_rank']:.0f})."
    )
    if "knn" in pretrain:
        text += (
            f" The k-NN probe inside the pool gets {percent(pretrain['knn'])} of "
            f"{pretrain['queries']} images right, before training {percent(before['knn'])}."
        )
    return text


def compare(first, second, right, names=None):
    """Says whether `first` differs from `second`.

    Args:
        first, second: rows of the table.
        right: dict from row to (N,) bool, which validation images it got right. A row that is
            not there rests on pre-training that collapsed; it wins no comparison.
        names: dict from row to how the sentence calls it.
    """
    names = names or {}
    one, two = names.get(first, f"setting {first}"), names.get(second, f"setting {second}")
    out = [text for row, text in ((first, one), (second, two)) if row not in right]
    if out:
        return (
            f"{_capital(one)} and {two} are not compared: the pre-training behind {listed(out)} "
            "has collapsed."
        )
    share, other = right[first].mean(), right[second].mean()
    p = mcnemar(right[first], right[second])
    if p >= LEVEL:
        return (
            f"Between {one} ({percent(share)}) and {two} ({percent(other)}) there is no "
            f"difference that {len(right[first])} images can show ({p_value(p)})."
        )
    word = "better" if share > other else "worse"
    return (
        f"{_capital(one)} ({percent(share)}) is {word} than {two} ({percent(other)}) by "
        f"{points(abs(share - other))} ({p_value(p)})."
    )


def ranking(right):
    """Names the best of the settings A–E and what it can be told apart from."""
    shares = {s: r.mean() for s, r in right.items() if s in "ABCDE"}
    order = ranked(right)
    best = order[0]
    same = [s for s in order[1:] if mcnemar(right[best], right[s]) >= LEVEL]
    lead = shares[best] - shares[order[1]]
    ahead = f"{points(lead)} ahead of" if lead > 0 else "level with"
    text = (
        f"At the last epoch setting {best} has the highest validation accuracy, "
        f"{percent(shares[best])}, {ahead} setting {order[1]}; the order is {', '.join(order)}."
    )
    absent = [s for s in "ABCDE" if s not in shares]
    if absent:
        text += f" {listed(absent)} rest on pre-training that collapsed and take no part."
    if same:
        return text + (
            f" {len(right[best])} images cannot tell it from {listed(same)} (exact McNemar test)."
        )
    return text + " The exact McNemar test tells it from each of the others."


def ranked(right):
    """The settings A–E that may be compared, the best first."""
    return sorted((s for s in right if s in "ABCDE"), key=lambda s: (-right[s].mean(), s))


def pretraining(right):
    """What pre-training brings when everything is fine-tuned: B and C against A, C against B."""
    return " ".join(
        compare(a, b, right)
        for a, b in (("B", "A"), ("C", "A"), ("C", "B"))
    )


def domains(right, pool, target):
    """What frozen against unfrozen says about the two domains."""
    parts = []
    for frozen, free, kind in (("D", "B", "supervised"), ("E", "C", "self-supervised")):
        if free not in right:
            parts.append(
                f"The {kind} pre-training has collapsed, so {frozen} and {free} say nothing."
            )
            continue
        gap = right[free].mean() - right[frozen].mean()
        p = mcnemar(right[free], right[frozen])
        if p >= LEVEL:
            parts.append(
                f"Freezing the {kind} backbone ({frozen} against {free}) changes nothing that "
                f"{len(right[free])} images can show ({percent(right[frozen].mean())} against "
                f"{percent(right[free].mean())}, {p_value(p)}): no sign here that {pool} and "
                f"{target} ask for other features."
            )
        elif gap > 0:
            parts.append(
                f"Freezing the {kind} backbone ({frozen} against {free}) costs {points(gap)} "
                f"({p_value(p)}): features learnt on {pool} do not carry over to {target} whole, "
                "they have to be adapted."
            )
        else:
            parts.append(
                f"The frozen {kind} backbone ({frozen}) is even {points(-gap)} better than the "
                f"fine-tuned one ({free}; {p_value(p)}): its features of {pool} serve {target} "
                "better as they are than after fine-tuning on these few labelled images."
            )
    return " ".join(parts)


def controls(right):
    """Whether the self-supervised features hold more than the controls do."""
    names = {
        "E": "a head on the frozen self-supervised features (E)",
        "random": "the same head on a frozen random backbone",
        "colour": "the same head on colour statistics alone",
        "knn": "k-NN on the self-supervised features",
        "knn-random": "k-NN on those of a random backbone",
    }
    pairs = (("E", "random"), ("E", "colour"), ("knn", "knn-random"))
    return " ".join(compare(*pair, right, names) for pair in pairs)


def seeds(table, collapsed=()):
    """What remains of the differences when everything is repeated with other seeds.

    Args:
        table: DataFrame as in tables/finetune_seeds.csv.
        collapsed: seeds whose pre-training has collapsed; they take no part.
    """
    total = table["seed"].nunique()
    table = table[~table["seed"].isin(collapsed)]
    last = table.pivot(index="seed", columns="setting", values="accuracy_last")
    count = len(last)
    left_out = (
        f" Left out for collapsed pre-training: {listed(f'seed {s}' for s in collapsed)}."
        if collapsed else ""
    )
    if total == 1:
        return (
            "One seed was run, so how much these numbers move from seed to seed was not measured; "
            "`--seeds 3` repeats pre-training, fine-tuning and controls with two more."
        )
    if count < 2:
        return f"Too few of the {total} seeds are left for a comparison.{left_out}"
    parts = []
    for one, two in (("C", "A"), ("E", "random"), ("E", "colour")):
        change = last[one] - last[two]
        sign = "each time" if (change > 0).all() else f"{int((change > 0).sum())} of {count} times"
        parts.append(
            f"{one} − {two} is {100 * change.mean():+.1f} ± {100 * change.std():.1f} points, "
            f"above zero {sign}"
        )
    return (
        f"Over {count} seeds, each with a pre-training of its own (mean ± standard deviation, last "
        f"epoch): {'; '.join(parts)}.{left_out}"
    )


def embedding(numbers, setting):
    """Whether classes are denser and more separate at the last epoch than at the first."""
    first, last = numbers["silhouette_first"], numbers["silhouette_last"]
    pure, purer = numbers["purity_first"], numbers["purity_last"]
    denser = "denser and further apart" if last > first else "not denser or further apart"
    neighbours = "more" if purer > pure else "fewer" if purer < pure else "as many"
    return (
        f"From the first to the last epoch of setting {setting} the mean silhouette of the "
        f"activations goes from {first:.3f} to {last:.3f}: the classes are {denser}. "
        f"{_capital(neighbours)} of an image's nearest neighbours belong to its own class "
        f"({percent(purer)} after {percent(pure)}). PCA's two axes hold "
        f"{percent(numbers['pca_variance'])} of the variance; t-SNE keeps neighbourhoods with a "
        f"trustworthiness of {numbers['trustworthiness_first']:.3f} and "
        f"{numbers['trustworthiness_last']:.3f}, but its distances between clusters mean nothing."
    )


def segmentation(metrics, names, improved):
    """Which model is best at its last epoch, by how much, and what is hard for it.

    Args:
        metrics: dict from model, model+tta and colour to their numbers.
        names: dict from model to its full name.
        improved: the improved model.
    """
    last = {m: metrics[m]["miou_last"] for m in names}
    order = sorted(last, key=lambda m: (-last[m], m))
    best, second = order[:2]
    text = (
        f"At the last epoch {names[best]} is best with a mIoU of {last[best]:.3f}, "
        f"{last[best] - last[second]:.3f} ahead of {names[second]}. "
    )
    if improved != "fcn32s":
        gain = last[improved] - last["fcn32s"]
        word = "above" if gain >= 0 else "below"
        text += f"The improved model, {names[improved]}, is {abs(gain):.3f} {word} "
        text += f"{names['fcn32s']}. "
    control = metrics["colour"]["miou_last"]
    above = [names[m] for m in order if last[m] > control]
    text += f"A look-up table of colours alone reaches {control:.3f}; "
    if above:
        text += f"above it {'is' if len(above) == 1 else 'are'} {listed(above)}."
    else:
        text += "no model is above it."
    for model in (m for m in order if f"{m}+tta" in metrics):
        change = metrics[f"{model}+tta"]["miou_last"] - last[model]
        text += (
            f" Averaged over eight flips and turns of each tile (TTA), {names[model]} "
            f"{_moved(change)}."
        )
    return text + " " + hardest(metrics[best]["iou_last"], names[best])


def _moved(change):
    """gains 0.012 mIoU, loses 0.012 mIoU or stays as it is."""
    if abs(change) < VISIBLE:
        return "stays as it is"
    return f"{'gains' if change > 0 else 'loses'} {abs(change):.3f} mIoU"


def refinement(found, names, model, tiles):
    """What a majority vote in each segment makes of a model's prediction on all tiles.

    Args:
        found: metrics of step everything.
        names: dict from method to its full name.
        model: full name of the model.
        tiles: number of validation tiles.
    """
    parts = []
    for method, values in found["refined"].items():
        change = values["miou"] - found["model_miou"]
        parts.append(
            f"with {names[method]} ({values['segments']:.0f} segments an image) it {_moved(change)}"
        )
    return (
        f"On all {tiles} validation tiles, a majority vote in each segment changes {model}'s "
        f"prediction of the last epoch: {'; '.join(parts)}. The row *vote* of the table "
        f"of models is that of {names[found['refine']]}, which was chosen before anything was "
        "measured."
    )


def hardest(iou, name):
    """The class with the lowest IoU, and the classes that do not occur."""
    measured = {c: v for c, v in iou.items() if v is not None}
    worst = min(measured, key=measured.get)
    text = f"The hardest class for {name} is {worst} (IoU {measured[worst]:.3f})."
    absent = [c for c in SCORED if c not in measured]
    if absent:
        one = len(absent) == 1
        text += (
            f" {_capital(listed(absent))} {'occurs' if one else 'occur'} neither in these labels "
            f"nor in its predictions and {'is' if one else 'are'} left out of its mean."
        )
    return text


def stages(by_stage, name):
    """How the mean of the shown images' mIoU moves from the early to the final stage."""
    values = {stage: float(np.mean(scores)) for stage, scores in by_stage.items()}
    path = ", ".join(f"{value:.3f} ({stage})" for stage, value in values.items())
    grows = values["final"] > values["early"]
    return (
        f"Over these images the mean mIoU of {name} is {path}: it "
        f"{'gains' if grows else 'does not gain'} from the early to the final stage."
    )


def everything(rows, names):
    """What the everything masks are worth for land cover, method by method."""
    parts = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]

        def mean(key, mine=mine):
            return float(np.mean([row[key] for row in mine if row[key] is not None]))

        change = mean("vote_miou") - mean("model_miou")
        effect = f"{'raises' if change > 0 else 'lowers'} its mIoU by {abs(change):.3f}"
        if abs(change) < VISIBLE:
            effect = "leaves its mIoU as it is"
        parts.append(
            f"{names[method]} finds {mean('masks'):.0f} masks an image on average; if each took "
            f"the right class, {percent(mean('asa'))} of the pixels would be right (an upper "
            f"bound). Letting our own model vote inside each mask {effect} on these images."
        )
    return " ".join(parts)


def points(share):
    """0.042 -> 4.2 percentage points."""
    return f"{100 * share:.1f} percentage points"


def p_value(p):
    """p = 0.042, or p < 0.001."""
    number = p_number(p)
    return f"p {number}" if number.startswith("<") else f"p = {number}"


def p_number(p):
    """Three digits, and more where three would hide on which side of the level it is."""
    if p < 0.001:
        return "< 0.001"
    digits = 3
    while p != LEVEL and round(p, digits) == LEVEL:
        digits += 1
    return f"{p:.{digits}f}"


def listed(items):
    """A, B and C."""
    items = list(items)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _capital(text):
    return text[:1].upper() + text[1:]
