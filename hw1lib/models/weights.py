"""SAM's weights: a Hugging Face folder, or one of Meta's own .pth files, read without running code from it."""

import json
import re

import safetensors.torch
import torch

from hw1lib import paths
from hw1lib.errors import did_you_mean
from hw1lib.models import pretrained

SAM_FOLDERS = ("sam-vit-base", "sam-vit-large", "sam-vit-huge")
SAM_PARTS = ("config.json", "model.safetensors")  # of such a folder
SAM_FILES = ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth")

SAM_HINT = (
    "SAM's weights are not there: run `.venv/bin/python -m hw1lib weights fetch sam_vit_b` (375 MB), or put Meta's "
    "sam_vit_b_01ec64.pth or the Hugging Face folder sam-vit-base into data/weights."
)

SAM_REMEDY = f"Delete it and get it again; what is expected: {SAM_HINT.partition(': ')[2]}"

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
    """Return the path of SAM's weights for `load_sam`, or None; the smallest model first, a folder before a .pth."""
    found = [folder / name for name in SAM_FOLDERS if all((folder / name / part).is_file() for part in SAM_PARTS)]
    found += [folder / name for name in SAM_FILES if (folder / name).is_file()]
    return found[0] if found else None


def unused(folder=paths.WEIGHTS):
    """Sentences that name what lies in the folder of weights but is not used, such as a file of a similar name."""
    known = SAM_FOLDERS + SAM_FILES
    for path in sorted(folder.glob("[!.]*")):
        absent = [part for part in SAM_PARTS if not (path / part).is_file()]
        if path.name in SAM_FOLDERS and absent:
            yield f"{path} is not used: it lacks {' and '.join(absent)}."
        elif path.name not in known or (path.name in SAM_FILES and path.is_dir()):
            similar = did_you_mean(path.name, SAM_FOLDERS if path.is_dir() else SAM_FILES)
            names = "" if similar else f" SAM's weights are {', '.join(known)}."
            yield f"{path} is not used.{similar or names}"


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

    with pretrained.naming(path, "SAM's weights", SAM_REMEDY):
        if path.is_dir():
            settings = _sam_settings(path)
            config = SamConfig.from_dict(settings)
            tensors = safetensors.torch.load_file(path / SAM_PARTS[1])
        else:
            state = _sam_state(path)
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
    return sam.float().eval()


def check_sam(path):
    """Check the names in a file of SAM's weights; quick, as `load_sam`, which reads all of it, is not.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    with pretrained.naming(path, "SAM's weights", SAM_REMEDY):
        if path.is_dir():
            layers = _sam_settings(path).get("vision_config", {}).get("num_hidden_layers", 12)
            last = f"vision_encoder.layers.{layers - 1}.mlp.lin2.bias"
            with safetensors.safe_open(path / SAM_PARTS[1], "pt") as file:
                names = set(file.keys())
            expected = {"vision_encoder.pos_embed", last, "mask_decoder.iou_token.weight"}
            if absent := sorted(expected - names):
                raise ValueError(f"{pretrained.content_of(list(names))}, but not SAM's {absent[0]}")
            return
        state = _sam_state(path)
        layers = sum(name.endswith(".attn.rel_pos_h") for name in state)
        if len(state) < 14 * layers + 146:  # 14 tensors in each layer of the encoder, 146 others
            raise ValueError(f"{pretrained.content_of(list(state))}; SAM with {layers} layers has {14 * layers + 146}")


def _sam_settings(folder):
    """The config.json of a Hugging Face folder."""
    settings = json.loads((folder / SAM_PARTS[0]).read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or settings.get("model_type") != "sam":
        raise ValueError("its config.json does not say model_type: sam")
    return settings


def _sam_state(path):
    """Meta's state dict from a .pth file."""
    content = pretrained.read_pickle(path)
    return pretrained.only(pretrained.state_dicts(content, "image_encoder.pos_embed"), content, "SAM")


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
