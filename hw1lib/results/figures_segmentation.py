"""The pictures of Problem 2: tiles, networks, training stages, everything masks."""

import itertools

import matplotlib.colors
import numpy as np
from matplotlib.patches import FancyBboxPatch, Patch

from hw1lib.data import landcover
from hw1lib.results.figures import INK, MUTED, PALETTE, bare, canvas, epochs, show

MODEL_COLOURS = {"fcn32s": PALETTE[3], "lraspp": PALETTE[0], "deeplabv3": PALETTE[2]}
PART_COLOURS = {
    "input": "#d5d8dc", "backbone": "#8fb8de", "head": "#f5b971", "upsampling": "#9fd8a5",
}


def class_legend(figure, classes, columns=7):
    handles = [
        Patch(
            facecolor=landcover.PALETTE[c] / 255, edgecolor=MUTED, label=landcover.CLASSES[c]
        )
        for c in classes
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=8, handlelength=1.2
    )


def tiles(rows):
    """Satellite tiles above their masks.

    Args:
        rows: list of (number, (H, W, 3) uint8 image, (H, W) uint8 classes).
    """
    figure, axes = canvas(2, len(rows), (7, 7 / len(rows) * 2 + 0.5))
    for column, (number, image, classes) in enumerate(rows):
        show(axes[column], image, number)
        show(axes[len(rows) + column], landcover.encode(classes))
    class_legend(figure, sorted(set(np.unique([c for _, _, c in rows]).tolist())))
    return figure


def pixel_shares(shares):
    """Share of each land-cover class in the pixels of each split."""
    figure, axes = canvas(1, 1, (6.4, 1.6))
    axis = axes[0]
    for row, (split, values) in enumerate(shares.items()):
        left = 0.0
        for number, share in enumerate(values):
            colour = landcover.PALETTE[number] / 255
            axis.barh(row, share, left=left, color=colour, edgecolor=MUTED, linewidth=0.5)
            if share > 0.04:
                dark = landcover.CLASSES[number] in ("water", "unknown")
                axis.text(
                    left + share / 2, row, f"{share:.0%}", ha="center", va="center",
                    fontsize=7, color="white" if dark else "black",
                )
            left += share
    axis.set_yticks(range(len(shares)), list(shares))
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.grid(False)
    class_legend(figure, range(len(landcover.CLASSES)))
    return figure


def architecture(blocks, title):
    """A network as boxes: taller is larger in space, wider has more channels.

    Args:
        blocks: list of dicts with label, part and shape (channels, height, width), in order.
        title: of the picture.
    """
    figure, axes = canvas(1, 1, (7.2, 2.9))
    axis = axes[0]
    left, gap, floor = 0.0, 0.55, 0.4
    top = max(block["shape"][1] for block in blocks)
    centres = []
    for block in blocks:
        channels, height, _ = block["shape"]
        tall = floor + 2.6 * np.log2(1 + height) / np.log2(1 + top)
        wide = 0.18 + 0.085 * np.log2(channels)
        box = FancyBboxPatch(
            (left, -tall / 2), wide, tall, boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=PART_COLOURS[block["part"]], edgecolor=INK, linewidth=0.8,
        )
        axis.add_patch(box)
        axis.text(
            left + wide / 2, tall / 2 + 0.1, f"{channels}\n{height}²", ha="center", va="bottom",
            fontsize=6.5, color=INK,
        )
        axis.text(
            left + wide / 2 + 0.1, -tall / 2 - 0.12, block["label"], ha="right", va="top",
            fontsize=6.5, rotation=38, rotation_mode="anchor", color=INK,
        )
        centres.append((left, left + wide))
        left += wide + gap
    for (_, end), (start, _) in itertools.pairwise(centres):
        axis.annotate(
            "", (start, 0), (end, 0),
            arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "shrinkA": 1,
                        "shrinkB": 1},
        )
    axis.set_xlim(-1.0, left)
    axis.set_ylim(-3.0, 2.4)
    axis.set_title(title)
    bare(axis)
    handles = [
        Patch(facecolor=colour, edgecolor=INK, label=part) for part, colour in PART_COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def segmentation_curves(histories, names, control):
    """Training loss and validation mIoU of the three models.

    Args:
        histories: dict from model to DataFrame with epoch, loss and miou.
        names: dict from model to its full name.
        control: mIoU of the colour look-up table.
    """
    figure, axes = canvas(1, 2, (7, 2.8))
    for model, history in histories.items():
        style = dict(color=MODEL_COLOURS[model], label=names[model], marker="o", markersize=3)
        axes[0].plot(history["epoch"], history["loss"], **style)
        axes[1].plot(history["epoch"], history["miou"], **style)
    axes[1].axhline(control, color=MUTED, linestyle=":", linewidth=1.2)
    axes[1].annotate(
        "colours alone", (1, control), (-2, 2), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", fontsize=7, color=MUTED,
    )
    axes[0].set_title("training loss")
    axes[0].set_ylim(bottom=0)
    axes[1].set_title("validation mIoU")
    axes[1].yaxis.set_major_formatter("{x:.2f}")
    for axis in axes:
        epochs(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def class_iou(values, names):
    """IoU of each class by model at the last epoch, the colour control as a line.

    Args:
        values: dict from model or colour to a dict from class to IoU or None.
        names: dict from model to its full name.
    """
    figure, axes = canvas(1, 1, (6.8, 2.6))
    axis = axes[0]
    classes = [c for c in landcover.SCORED if any(v[c] is not None for v in values.values())]
    wide = 0.8 / len(names)
    for place, (model, name) in enumerate(names.items()):
        at = np.arange(len(classes)) + (place - (len(names) - 1) / 2) * wide
        heights = [values[model][c] or 0 for c in classes]
        axis.bar(at, heights, wide * 0.92, color=MODEL_COLOURS[model], label=name)
        for x, height, label in zip(at, heights, classes):
            text = "–" if values[model][label] is None else f"{height:.2f}"
            axis.text(x, height, text, ha="center", va="bottom", fontsize=6)
    for x, name in enumerate(classes):
        label = "colours alone" if x == 0 else None
        level = values["colour"][name] or 0
        axis.hlines(level, x - 0.45, x + 0.45, color=INK, linestyle=":", label=label)
    axis.set_xticks(range(len(classes)), classes)
    axis.set_ylabel("IoU")
    axis.set_ylim(0, 1)
    axis.grid(axis="x", visible=False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=7.5)
    return figure


def stages(rows, at):
    """Predicted masks of a few tiles at three stages of training, and the labels.

    Args:
        rows: list of dicts with number, image, early, middle, final and truth; masks are (H, W)
            uint8 classes, and miou maps each stage to that image's mIoU.
        at: dict from stage to epoch.
    """
    columns = ("image", *at, "truth")
    figure, axes = canvas(len(rows), len(columns), (7, 7 / len(columns) * len(rows) + 0.6))
    for row, data in enumerate(rows):
        for column, name in enumerate(columns):
            axis = axes[row * len(columns) + column]
            picture = data[name] if name == "image" else landcover.encode(data[name])
            title = ""
            if row == 0:
                title = f"{name} (epoch {at[name]})" if name in at else name
            show(axis, picture, title)
            if name in at:
                axis.set_xlabel(f"mIoU {data['miou'][name]:.2f}", fontsize=7)
        axes[row * len(columns)].set_ylabel(data["number"], fontsize=8)
    known = np.concatenate([np.unique(r[c]) for r in rows for c in columns[1:]])
    class_legend(figure, sorted(set(known.tolist())))
    return figure


def outlined(image, labels, seed=0, strength=0.45):
    """SAM's usual overlay: each segment in a random colour, with its outline.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) segment numbers; below zero is left as it is.

    Returns:
        (H, W, 3) float in [0, 1].
    """
    numbers, inverse = np.unique(labels, return_inverse=True)
    hues = np.random.default_rng(seed).permutation(len(numbers)) / len(numbers)
    hsv = np.stack([hues, np.full_like(hues, 0.75), np.full_like(hues, 0.95)], axis=1)
    colours = matplotlib.colors.hsv_to_rgb(hsv)[inverse.reshape(labels.shape)]
    mixed = (1 - strength) * image / 255 + strength * colours
    mixed[labels < 0] = image[labels < 0] / 255
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = 1.0
    return mixed


def everything_masks(rows, methods):
    """Everything masks of a few tiles, one column a method, with the refined prediction.

    Args:
        rows: list of dicts with number, image (H, W, 3), model (H, W) its prediction, truth (H, W)
            and, for each method, a dict with labels (H, W), vote (H, W) and masks (their number).
        methods: dict from method to its full name.
    """
    columns = 3 + 2 * len(methods)
    figure, axes = canvas(len(rows), columns, (7.2, 7.2 / columns * len(rows) + 0.8))
    for row, data in enumerate(rows):
        pictures = [("image", data["image"]), ("model", landcover.encode(data["model"]))]
        for method, name in methods.items():
            part = data[method]
            pictures.append((name, outlined(data["image"], part["labels"])))
            pictures.append(("its vote", landcover.encode(part["vote"])))
        pictures.append(("truth", landcover.encode(data["truth"])))
        line = axes[row * columns : (row + 1) * columns]
        for axis, (title, picture) in zip(line, pictures):
            show(axis, picture, title if row == 0 else "", 7)
        for place, method in enumerate(methods):
            line[2 + 2 * place].set_xlabel(f"{data[method]['masks']} masks", fontsize=7)
        line[0].set_ylabel(data["number"], fontsize=8)
    masks = [r[k] for r in rows for k in ("model", "truth")]
    masks += [r[m]["vote"] for r in rows for m in methods]
    class_legend(figure, sorted(set(np.unique(masks).tolist())))
    return figure


def everything_method(image, grid_xy, points_xy, labels, masks, name):
    """How everything mode works: points, points left, masks, cut-outs.

    Args:
        image: (H, W, 3) uint8.
        grid_xy: (P, 2) all starting points.
        points_xy: (M, 2) the points that masks are left of.
        labels: (H, W) the masks as a partition.
        masks: (M, H, W) bool.
        name: of the method.
    """
    figure, axes = canvas(1, 4, (7.2, 2.3))
    show(axes[0], image, f"1. {len(grid_xy)} starting points", 8)
    axes[0].scatter(*grid_xy.T, s=3, color="white", edgecolors=INK, linewidths=0.3)
    show(axes[1], image, f"2. {len(points_xy)} points left", 8)
    axes[1].scatter(*points_xy.T, s=5, color=PALETTE[1], edgecolors=INK, linewidths=0.3)
    show(axes[2], outlined(image, labels), f"3. {len(masks)} masks", 8)
    show(axes[3], cut_outs(image, masks), "4. largest cut-outs", 8)
    figure.suptitle(name, fontsize=9, color=INK)
    return figure


def cut_outs(image, masks, side=3):
    """The largest masks cut out of the image, on a white sheet of side × side cells."""
    cell = max(image.shape[:2]) // side
    sheet = np.full((cell * side, cell * side, 3), 255, dtype=np.uint8)
    largest = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")[: side * side]
    for place, number in enumerate(largest):
        rows, columns = np.nonzero(masks[number])
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        piece = np.where(masks[number][box][..., None], image[box], 255)
        step = max(1, int(np.ceil(max(piece.shape[:2]) / (cell - 2))))
        piece = piece[::step, ::step]
        top, left = (place // side) * cell + 1, (place % side) * cell + 1
        sheet[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return sheet
