"""Optional weights: where they lie and how they load. Only `imagenet_backbone` may download.

SAM comes as a Hugging Face folder or as one of Meta's own .pth files; the course hands out a
supervised ResNet50. Every file is read without running code from it.
"""

import json
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from hw1lib import errors, paths
from hw1lib.errors import UserError, is_damage

SAM_FOLDERS = ("sam-vit-base", "sam-vit-large", "sam-vit-huge")
SAM_FILES = ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth")

SAM_HINT = (
    "SAM's weights are not there: run `.venv/bin/python -m hw1lib weights fetch sam_vit_b` (375 MB), or put Meta's "
    "sam_vit_b_01ec64.pth or the Hugging Face folder sam-vit-base into data/weights."
)

# transformers keeps one matrix under two names, and a file may hold it under either.
_SHARED = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")

# Numbered layers in Meta's files: the beginning that transformers gives them, and their ends.
_SAM_LAYERS = {
    "neck": ("neck.", {0: "conv1", 1: "layer_norm1", 2: "conv2", 3: "layer_norm2"}),
    "mask_downscaling": ("mask_embed.", {0: "conv1", 1: "layer_norm1", 3: "conv2", 4: "layer_norm2", 6: "conv3"}),
    "output_upscaling": ("upscale_", {0: "conv1", 1: "layer_norm", 3: "conv2"}),
}

# Meta's names on the left, transformers' on the right; applied in this order.
_SAM_NAMES = (
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.point_embeddings\.", ".point_embed."),
    *((rf"\.{old}\.{n}\.", f".{new}{end}.") for old, (new, ends) in _SAM_LAYERS.items() for n, end in ends.items()),
    # The small MLPs: three numbered layers there, an input, one inner and an output layer here.
    (r"(_head|_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(_head|_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"(_head|_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", _SHARED[0]),
)


def find_sam(folder=paths.WEIGHTS):
    """Looks for SAM's weights, the smallest model first and a Hugging Face folder before a .pth.

    Args:
        folder: where weights lie.

    Returns:
        The Path to give to `load_sam`, or None.
    """
    parts = ("config.json", "model.safetensors")
    found = [folder / name for name in SAM_FOLDERS if all((folder / name / part).is_file() for part in parts)]
    found += [folder / name for name in SAM_FILES if (folder / name).is_file()]
    return found[0] if found else None


def load_sam(path):
    """Loads SAM from a Hugging Face folder or from one of Meta's .pth files.

    Args:
        path: the folder with config.json and model.safetensors, or the .pth file.

    Returns:
        A transformers SamModel in eval mode, float32, on the CPU. Every tensor comes from the
        file: none is ever left at random values.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    # transformers takes seconds to import; only who has SAM's weights waits for it.
    from transformers import SamConfig, SamModel

    remedy = f"Delete it and get it again; what is expected: {SAM_HINT.partition(': ')[2]}"
    try:
        if path.is_dir():
            settings = json.loads((path / "config.json").read_text())
            if settings.get("model_type") != "sam":
                raise ValueError(f"its config.json is of type {settings.get('model_type')!r}")
            config = SamConfig.from_dict(settings)
            tensors = safetensors.torch.load_file(path / "model.safetensors")
        else:
            state = _read_pickle(path)
            config, tensors = sam_config(state), convert_sam(state)
        for name, twin in (_SHARED, _SHARED[::-1]):
            if name in tensors:
                tensors.setdefault(twin, tensors[name])
        # Meta's decoder normalises with 1e-5, transformers' files say 1e-6: one for both, so that
        # the masks do not depend on which of the two files lies here.
        config.mask_decoder_config.layer_norm_eps = 1e-5
        with torch.device("meta"):  # no memory and no random numbers before the real ones
            sam = SamModel(config)
        if missing := sam.load_state_dict(tensors, strict=False, assign=True).missing_keys:
            raise ValueError(f"it lacks {len(missing)} tensors of SAM, first {missing[0]}")
    except Exception as error:
        remedy = _remedy(error, remedy)
        raise UserError(f"SAM's weights in {path} cannot be used: {_reason(error)}. {remedy}") from error
    return sam.float().eval()


def sam_config(state):
    """Reads the model's size from Meta's tensors, so that no file name has to be trusted.

    Args:
        state: Meta's state dict of any SAM with a plain ViT encoder (vit_b, vit_l, vit_h).

    Returns:
        The transformers SamConfig.
    """
    from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    encoder = "image_encoder."
    _, grid, _, width = state[encoder + "pos_embed"].shape
    patch = state[encoder + "patch_embed.proj.weight"].shape[-1]
    # A table of relative positions has 2·n - 1 rows: n is the grid where attention is global,
    # the window elsewhere.
    depth = sum(name.endswith(".attn.rel_pos_h") for name in state)
    tables = [state[f"{encoder}blocks.{index}.attn.rel_pos_h"] for index in range(depth)]
    reaches = [(len(table) + 1) // 2 for table in tables]
    hidden = state["prompt_encoder.no_mask_embed.weight"].shape[1]  # of prompts and masks
    vision = SamVisionConfig(
        hidden_size=width,
        output_channels=hidden,
        num_pos_feats=hidden // 2,
        num_hidden_layers=depth,
        num_attention_heads=width // tables[0].shape[1],
        image_size=grid * patch,
        patch_size=patch,
        window_size=min(reaches),
        global_attn_indexes=[index for index, reach in enumerate(reaches) if reach == grid],
        mlp_dim=state[encoder + "blocks.0.mlp.lin1.weight"].shape[0],
    )
    prompt = SamPromptEncoderConfig(hidden_size=hidden, image_size=grid * patch, patch_size=patch)
    mlp_dim = state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]
    iou_dim = state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0]
    mask = SamMaskDecoderConfig(hidden_size=hidden, mlp_dim=mlp_dim, iou_head_hidden_dim=iou_dim)
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask)


def convert_sam(state):
    """Renames Meta's SAM tensors to transformers' names; values stay as they are."""
    tensors = {}
    for name, tensor in state.items():
        for pattern, replacement in _SAM_NAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return tensors


def load_backbone(path):
    """Loads the course's supervised ResNet50, `pretrain_model_SL.pt`, without its classifier.

    Args:
        path: a state dict of torchvision's resnet50. It may be wrapped as {"state_dict": …} or
            {"model": …}, its names may begin with "module.", and fc may have any size.

    Returns:
        {name: tensor} with exactly the names and shapes of torchvision's resnet50, less fc.

    Raises:
        UserError: the file is damaged, needs code to load, or holds another network.
    """
    from torchvision.models import resnet50

    remedy = (
        "It must be the state dict of torchvision's resnet50, saved as torch.save(model.state_dict(), path); get the "
        "file again, or remove it and have one trained on the labelled pool: --set supervised.source=pool."
    )
    try:
        state = _read_pickle(path)
        for wrapper in ("state_dict", "model"):
            state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        tensors = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        with torch.device("meta"):
            network = resnet50(weights=None)
        network.fc = nn.Identity()
        counters = [name for name in network.state_dict() if name.endswith(".num_batches_tracked")]
        for name in counters:  # files from old versions lack them
            tensors.setdefault(name, torch.tensor(0))
        network.load_state_dict(tensors, assign=True)  # strict: no name too many or too few, and every shape
    except Exception as error:
        remedy = _remedy(error, remedy)
        raise UserError(f"The backbone in {path} cannot be used: {_reason(error)}. {remedy}") from error
    return tensors


def imagenet_backbone():
    """Loads torchvision's ImageNet ResNet50, from torch's cache or else from its server.

    Returns:
        What `load_backbone` gives, and the file's name.

    Raises:
        UserError: it cannot be downloaded.
    """
    from torchvision.models import ResNet50_Weights

    url = ResNet50_Weights.DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        digest = path.stem.rpartition("-")[2]  # the file's name ends in its hash's first digits
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is not
            remedy = f"Put that file into {path.parent}, or choose --set supervised.source=pool."
            raise UserError(f"supervised.source=imagenet: {url} could not be downloaded ({error}). {remedy}") from error
    return load_backbone(path), path.name


def _read_pickle(path):
    """A dict of plain tensors from a file of torch.save; code in it is refused, not run."""
    with open(path, "rb") as file:  # where it is not there, or not to be read, the system says it best
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            if not is_damage(error):
                raise
            if "Unsupported global" in str(error) or "Unsupported class" in str(error):
                raise ValueError("it holds a pickled object whose loading would run code") from error
            raise ValueError("it is damaged or no file of torch.save") from error
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not a dict of tensors")
    return state


def _remedy(error, damaged):
    """What helps where a file could not be loaded; what has nothing to do with the file is raised again.

    Args:
        damaged: the sentence for a file that is damaged, which shows in exceptions of many kinds.
    """
    if isinstance(error, OSError) and error.errno:
        return errors.remedy(error)
    if not is_damage(error):
        raise error
    return damaged


def _reason(error):
    """What an exception says, short enough for one sentence."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    return words[:200].rstrip(".: ") or type(error).__name__
