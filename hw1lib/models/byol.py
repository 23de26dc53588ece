"""BYOL (Grill et al. 2020, arXiv:2006.07733) through the byol-pytorch package."""

from byol_pytorch import BYOL
from torch import nn


def learner(backbone, image_size, settings, views=None):
    """The report's own call of byol-pytorch.

    NOTE: `use_simplicial_embeddings` is on by default since byol-pytorch 0.8; plain BYOL, and the
    call that the original report made, need it off.

    Args:
        backbone: ResNet50; its `avgpool` output is the representation.
        image_size: side of the views in pixels.
        settings: profiles.Pretrain.
        views: module that draws one augmented view of a batch; None takes the package's own,
            which draws one augmentation for the whole batch.

    Returns:
        The learner; `learner(images)` is the symmetric loss in [0, 8].
    """
    byol = BYOL(
        backbone,
        image_size=image_size,
        hidden_layer="avgpool",
        projection_size=settings.projection_size,
        projection_hidden_size=settings.projection_hidden_size,
        augment_fn=nn.Identity() if views is not None else None,
        moving_average_decay=settings.moving_average_decay,
        use_momentum=settings.use_momentum,
        use_simplicial_embeddings=False,
    )
    if views is not None:  # set afterwards: the constructor tries the learner on random noise
        byol.augment1 = byol.augment2 = views
    return byol


def call_text(image_size, settings):
    """The call above as the report prints it; arguments at the package's defaults are left out."""
    lines = [
        "learner = BYOL(",
        "    model,",
        f"    image_size = {image_size},",
        "    hidden_layer = 'avgpool',",
    ]
    defaults = {
        "use_momentum": True,
        "moving_average_decay": 0.99,
        "projection_size": 256,
        "projection_hidden_size": 4096,
    }
    for name, default in defaults.items():
        if getattr(settings, name) != default:
            lines.append(f"    {name} = {getattr(settings, name)},")
    if settings.augmentation == "batched":
        lines.append("    augment_fn = views,    # drawn for each image by itself")
    lines += ["    use_simplicial_embeddings = False,", ")"]
    return "\n".join(lines)
