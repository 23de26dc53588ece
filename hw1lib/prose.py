"""Every sentence and every piece of printed code of the report by name, from a workbook."""

import dataclasses
import functools

from hw1lib import answers, original, profiles
from hw1lib import answers_segmentation as two
from hw1lib.loops import augment
from hw1lib.models import byol, segmenters, weights
from hw1lib.results import sentences
from hw1lib.results.tables import escape, fraction, percent
from hw1lib.steps import check_of


def weaknesses_text(problem):
    """What the data's check found that weakens a problem's numbers, as a function of a workbook."""
    def text(book):
        found = book.metrics(check_of(problem))["warnings"]
        if not found:
            return f"The check of Problem {problem}'s data found nothing that weakens its numbers."
        head = f"**What weakens the numbers of Problem {problem}**, by the check of its data:"
        return "\n".join([head, "", *(f"- {escape(line)}" for line in found)])
    return text


def _data_names(book):
    if book.is_sample:
        return "the Americas", "the other continents"
    return "Mini-ImageNet", "Office-Home"


def data_text(book):
    """What the data holds, counted."""
    parts = []
    pool_name, target_name = _data_names(book)
    if book.data.problem1:
        one = book.data.problem1
        labelled = "with labels" if one.pool.labels is not None else "without labels"
        parts.append(
            f"Problem 1 pre-trains on {len(one.pool):,} images of {pool_name} ({labelled}) and "
            f"fine-tunes on {len(one.train):,} training and {len(one.val):,} validation images "
            f"of {target_name} in {len(one.classes)} classes, at {book.profile.data.image_size} × "
            f"{book.profile.data.image_size} pixels."
        )
    if book.data.problem2:
        two = book.data.problem2
        parts.append(
            f"Problem 2 has {len(two.train):,} training and {len(two.validation):,} validation "
            "tiles."
        )
    return " ".join(parts)


def compare_original_text(problem, things, baselines, form):
    """Whether the original's numbers may stand beside ours, as a function of the workbook.

    Args:
        problem: 1 or 2.
        things: what was validated on, such as tiles.
        baselines: what the course's baselines are called.
        form: function from a baseline to text.
    """
    def text(book):
        if original.comparable(book, problem):
            baseline = original.numbers()[f"problem{problem}"]["baseline"]
            return (
                "The column *original* holds the original report's numbers on the same "
                f"validation {things}; the course's {baselines} are {form(baseline['simple'])} "
                f"(simple) and {form(baseline['strong'])} (strong)."
            )
        return (
            f"These {things} are not the course's, so the original's numbers do not compare; they "
            "are listed at the end."
        )
    return text


def supervised_text(book):
    """Where the backbone of settings B and D comes from."""
    made = book.metrics("pretrain-supervised")
    if made["source"] == "file":
        return f"The supervised backbone of settings B and D is the data's own {made['file']}."
    if made["source"] == "imagenet":
        return (
            f"**Not allowed by the course:** the supervised backbone of settings B and D is "
            f"torchvision's {made['file']}, trained on ImageNet. Its rows B and D are no answer "
            "to the homework."
        )
    return (
        "The supervised backbone of settings B and D was trained here on "
        f"the pool's {made['images']:,} images and their {made['classes']} labels."
    )


def forward_text(book):
    """Which forward pass trains, and how the target follows."""
    settings = book.profile.pretrain
    if not settings.one_pass:
        return "It is trained through the package's own forward pass."
    text = (
        "It is trained through a forward pass of our own on the package's networks, which takes "
        "each projection once and the cosines in float32; loss and gradients equal the package's."
    )
    if settings.use_momentum:
        return text + (
            " The target network follows the online one, BatchNorm statistics included, with a "
            f"decay that rises from {settings.moving_average_decay:g} to 1 along a cosine."
        )
    return text + (
        " Without momentum the target is the online network itself, without gradient (SimSiam; "
        "Chen and He 2020)."
    )


def seeds_text(book):
    """What remains of the differences over the seeds."""
    collapsed = [
        seed for seed, steps in book.seeds.items() if steps.done("pretrain").metrics["collapsed"]
    ]
    return sentences.seeds(answers.finetune_seeds(book), collapsed)


def models_text(book):
    """What the networks are, and how they differ, counted from the modules themselves."""
    names = segmenters.NAMES
    parts = {m: segmenters.anatomy(m) for m in names}
    cost = {m: (segmenters.parameters(m), two.multiply_adds(book, m)) for m in names}
    base, small, large = (parts[m] for m in ("fcn32s", "lraspp", "deeplabv3"))
    gated = segmenters.real("lraspp").classifier.cbr[0].out_channels

    def against(model):
        pairs = zip(cost[model], cost["fcn32s"], ("parameters", "multiply-adds"))
        return " and ".join(
            f"{100 * own / theirs:.3g} % of the {what}" for own, theirs, what in pairs
        )

    return "\n\n".join((
        f"**{names['fcn32s']}** (Long et al. 2015, on VGG16 of Simonyan and Zisserman 2015) is one "
        f"plain chain of {base['convolutions']} convolutions with {base['BatchNorm layers']} "
        f"BatchNorm layers and no skip connection. Its {base['poolings']} poolings shrink the "
        f"image {segmenters.STRIDE['fcn32s']} times; one transposed convolution enlarges the "
        "scores as many times in a single step, so nothing finer than such a block can be told "
        "apart.",
        f"**{names['lraspp']}** (Howard et al. 2019) has {against('lraspp')} of FCN32s. "
        f"*Backbone:* {small['inverted residuals']} inverted residuals (Sandler et al. 2018), "
        "which widen a thin map, filter each channel by itself and thin it again: "
        f"{small['depthwise convolutions']} of its {small['convolutions']} convolutions are "
        f"depthwise, {small['of these with a skip connection']} blocks have a skip connection, "
        f"{small['squeeze-and-excite blocks']} weigh their channels by squeeze-and-excite (Hu et "
        f"al. 2018), {small['BatchNorm layers']} BatchNorm layers keep it trainable from scratch. "
        f"{small['dilated convolutions']} convolutions are dilated instead of strided. *Head:* "
        f"{gated} channels, multiplied with a gate from global pooling. *Upsampling:* bilinear, in "
        "two steps, with scores of an earlier layer added in between, at a stride of "
        f"{segmenters.STRIDE['lraspp']} pixels.",
        f"**{names['deeplabv3']}** (Chen et al. 2017, on ResNet101 of He et al. 2016) has "
        f"{against('deeplabv3')} of FCN32s. *Backbone:* {large['residual bottlenecks']} residual "
        f"bottlenecks with {large['BatchNorm layers']} BatchNorm layers; "
        f"{large['dilated convolutions']} convolutions are dilated, so the last two stages stay at "
        f"a stride of {segmenters.STRIDE['deeplabv3']}. *Head:* atrous spatial pyramid pooling, "
        f"{large['branches of the ASPP']} branches that look at several scales at once. "
        "*Upsampling:* bilinear, in one step.",
        f"The improved model of this report is {names[book.profile.segmentation.improved]}. The "
        "original's text describes LR-ASPP while its table lists DeepLabV3; both were trained "
        "here.",
    ))


def strays_text(book):
    """How many pixels of the masks have a colour that is no class."""
    strays = book.metrics("segment-colour")["stray_pixels"]
    if not strays:
        return "Every pixel of the masks has the colour of a class."
    return (
        f"{strays:,} pixels of the masks have a colour that is no class; they count as unknown."
    )


def segmentation_text(book):
    """The ranking, and what the variants of the improved model bring."""
    found = two.segmentation_models(book)
    improved = book.profile.segmentation.improved
    return sentences.segmentation(found, segmenters.NAMES, improved)


def stages_text(book):
    shown, at = two.stage_rows(book)
    by_stage = {stage: [row["miou"][stage] for row in shown] for stage in at}
    return sentences.stages(by_stage, segmenters.NAMES[book.profile.segmentation.improved])


def everything_text(book):
    found = book.metrics("everything")
    text = sentences.everything(found["rows"], two.METHODS)
    if not found["sam"]:
        text = (
            "**SAM was not measured**, its rows are empty. " + weights.SAM_HINT
            + " The two classical segmenters need no weights. " + text
        )
    return text


def refinement_text(book):
    """What the vote changes on all validation tiles."""
    found = book.metrics("everything")
    name = segmenters.NAMES[book.profile.segmentation.improved]
    return sentences.refinement(found, two.METHODS, name, len(book.data.problem2.validation))


SENTENCES = {
    "data": data_text,
    "weaknesses1": weaknesses_text(1),
    "weaknesses2": weaknesses_text(2),
    "supervised": supervised_text,
    "collapse": lambda book: sentences.collapse(book.metrics("pretrain")),
    "forward": forward_text,
    "seeds": seeds_text,
    "ranking": lambda book: sentences.ranking(answers.right(book)),
    "pretraining": lambda book: sentences.pretraining(answers.right(book)),
    "domains": lambda book: sentences.domains(answers.right(book), *_data_names(book)),
    "controls": lambda book: sentences.controls(answers.right(book)),
    "compare_original": compare_original_text(1, "images", "baselines for setting C", percent),
    "embedding": lambda book: sentences.embedding(
        book.metrics("embed"), book.profile.embed.setting
    ),
    "models": models_text,
    "segmentation": segmentation_text,
    "compare_original_segmentation": compare_original_text(2, "tiles", "baselines", fraction),
    "stages": stages_text,
    "strays": strays_text,
    "everything": everything_text,
    "refinement": refinement_text,
}


def networks():
    """The segmentation networks: name, full name and paper."""
    return [
        {"name": m, "full": segmenters.NAMES[m], "paper": segmenters.PAPERS[m]}
        for m in profiles.SEGMENTERS
    ]


def byol_call(book):
    return byol.call_text(book.profile.data.image_size, book.profile.pretrain)


def optimizer_call(book):
    """The optimizer as code."""
    settings = book.profile.pretrain
    names = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
    decay = f", weight_decay={settings.weight_decay:g}" if settings.weight_decay else ""
    name = names[settings.optimizer]
    return f"optimizer = {name}(learner.parameters(), lr={settings.lr:g}{decay})"


def transforms(book, group="pretrain"):
    """The augmentation as code: the original's transforms, or the recipe drawn per image."""
    settings = getattr(book.profile, group)
    if settings.augmentation == "original":
        return str(augment.original(book.profile.data.image_size))
    recipes = augment.recipes(settings) if group == "pretrain" else (augment.CLASSIFY,)
    if len(set(recipes)) == 1:
        recipes = recipes[:1]
    printed = []
    for recipe in recipes:
        recipe = dataclasses.replace(recipe, overhead=book.profile.data.overhead)
        lines = [
            f"    {k} = {v:.4g}," if isinstance(v, float) else f"    {k} = {v},"
            for k, v in dataclasses.asdict(recipe).items()
        ]
        printed.append("\n".join(["Recipe(", *lines, ")"]))
    return "\n".join(printed)


CODE = {
    "byol_call": byol_call,
    "optimizer_call": optimizer_call,
    "pretrain_transforms": lambda book: transforms(book, "pretrain"),
    "finetune_transforms": lambda book: transforms(book, "finetune"),
    **{
        f"network_{m}": functools.partial(lambda book, m: str(segmenters.real(m)), m=m)
        for m in profiles.SEGMENTERS
    },
}
