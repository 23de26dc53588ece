"""SAM (Kirillov et al. 2023, Segment Anything): its weights, and its everything mode.

The network, its prompts and filters come from Meta's package segment-anything. This module also loads weights from a
Hugging Face folder, and cleans small regions without OpenCV.
"""

import re

import numpy as np
import safetensors.torch
import skimage.measure
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils import amg
from skimage.morphology import remove_small_holes, remove_small_objects
from torchvision.ops import nms

from hw1lib.models import pretrained
from hw1lib.models.superpixels import Masks
from hw1lib.models.weights import SAM_HINT, SAM_PARTS

ENCODERS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by the width of their features

# Substitutions, in this order, that turn Meta's names of tensors into those of Hugging Face.
_HUGGING_FACE = (
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.neck\.([02])\.", lambda match: f".neck.conv{int(match[1]) // 2 + 1}."),
    (r"\.neck\.([13])\.", lambda match: f".neck.layer_norm{int(match[1]) // 2 + 1}."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.([036])\.", lambda match: f".mask_embed.conv{int(match[1]) // 3 + 1}."),
    (r"\.mask_downscaling\.([14])\.", lambda match: f".mask_embed.layer_norm{int(match[1]) // 3 + 1}."),
    (r"\.output_upscaling\.([03])\.", lambda match: f".upscale_conv{int(match[1]) // 3 + 1}."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"(_head|_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(_head|_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"(_head|_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", "shared_image_embedding.positional_embedding"),
)


def load(path):
    """Load SAM from a Hugging Face folder or from one of Meta's .pth files.

    Args:
        path: the folder with config.json and model.safetensors, or the .pth file, which is memory-mapped.

    Returns:
        segment_anything's Sam in eval mode, float32, on the CPU.

    Raises:
        UserError: the file is damaged or does not hold exactly the tensors of a SAM.
    """
    remedy = f"Delete it and get it again: {SAM_HINT.partition(': ')[2]}"
    with pretrained.readable_errors(path, "SAM's weights", remedy):
        is_folder = path.is_dir()
        tensors = safetensors.torch.load_file(path / SAM_PARTS[1]) if is_folder else pretrained.read_tensors(path)
        positions = "vision_encoder.pos_embed" if is_folder else "image_encoder.pos_embed"
        state = pretrained.the_only(pretrained.find_networks(tensors, positions), tensors, "SAM")
        size = ENCODERS.get(state[positions].shape[-1], "vit_b")
        with torch.device("meta"):  # needs no memory and draws no random numbers
            network = sam_model_registry[size]()
        state = from_hugging_face(state, network.state_dict()) if is_folder else state
        pretrained.fill(network, state, f"SAM's {size}", tensors)
    # The only tensors that are not in the file: ImageNet's statistics.
    network.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    network.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return network.float().eval()


def from_hugging_face(tensors, names):
    """Rename a Hugging Face SAM's tensors to Meta's names; others are left out.

    Args:
        tensors: {Hugging Face's name: tensor}.
        names: all of Meta's names.

    Returns:
        {Meta's name: tensor}.
    """
    twin = "prompt_encoder.shared_embedding."  # the other name of one matrix; a file has either or both
    tensors = {name.replace(twin, "shared_image_embedding."): tensor for name, tensor in tensors.items()}
    other_names = {name: hugging_face_name(name) for name in names}
    return {name: tensors[other] for name, other in other_names.items() if other in tensors}


def hugging_face_name(name):
    """Return Hugging Face's name of a tensor, given Meta's."""
    for pattern, replacement in _HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def untrained(seed=5, side=256):
    """Build a small SAM with random weights, to try the generator without downloads; its masks are meaningless.

    Args:
        seed: random seed; torch's global generator is reset to it.
        side: side of the square input in pixels.
    """
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        img_size=side, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, out_chans=32, use_rel_pos=True, window_size=5,
        global_attn_indexes=(1,),
    )  # fmt: skip
    prompts = PromptEncoder(32, (side // 16, side // 16), (side, side), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=48)
    network = Sam(encoder, prompts, decoder)
    with torch.no_grad():  # without these changes all masks would be faint, large and alike
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
        prompts.pe_layer.positional_encoding_gaussian_matrix *= 4
        decoder.output_upscaling[3].weight[:, 0] = 0
        decoder.output_upscaling[3].bias[0] = 1  # a constant channel, which lowers the logits of every mask
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 20
            mlp.layers[-1].weight[0] = 0
            mlp.layers[-1].bias[0] = -8
        decoder.iou_prediction_head.layers[-1].weight *= 0.1
        decoder.iou_prediction_head.layers[-1].bias.fill_(0.9)
    return network.eval()


class _Generator(SamAutomaticMaskGenerator):
    """Meta's generator, which would fail if no crop had a mask."""

    def _process_crop(self, *arguments):
        data = super()._process_crop(*arguments)
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data


def sam_everything(
    image,
    network,
    *,
    points_per_side=32,
    crop_n_layers=0,
    crop_overlap_ratio=512 / 1500,
    crop_n_points_downscale_factor=1,
    min_mask_region_area=0,
    **settings,
):
    """Prompt SAM with a grid of points and keep the good, distinct masks.

    The settings have the names and defaults of Meta's generator (Kirillov et al. 2023, appendix B).

    Args:
        image: (H, W, 3) uint8 RGB image of any size.
        network: segment_anything's Sam in eval mode, on any device.
        points_per_side: number of grid points along each side.
        crop_n_layers: after the whole image, layers 1, 2, … process 4, 16, … enlarged crops.
        crop_overlap_ratio: overlap of layer 1's crops as a fraction of the image's shorter side; it halves with each
            further layer.
        crop_n_points_downscale_factor: each layer has this many times fewer points along each side than the one before.
        min_mask_region_area: smaller islands are removed and smaller holes filled; 0 leaves them.
        settings: further settings of SamAutomaticMaskGenerator, such as:

            - pred_iou_thresh (0.88): masks must have a higher predicted IoU; 0 keeps all.
            - stability_score_thresh (0.95): masks must have at least this stability score; 0 keeps all.
              stability_score_offset (1): logits by which the cut-off is shifted to measure it.
            - box_nms_thresh (0.7): of two masks whose boxes have a higher IoU, the better one is kept; 1 keeps all.
            - crop_nms_thresh (0.7): the same between crops, where the smaller crop's mask is kept.
            - points_per_batch (64): points decoded at once; it changes memory and speed, not the masks.

    Returns:
        Masks, possibly none: smaller crops first, and within a crop by falling predicted IoU; with
        min_mask_region_area, those that needed no cleaning come before all others.
    """
    sides = [max(1, int(points_per_side / crop_n_points_downscale_factor**n)) for n in range(crop_n_layers + 1)]
    grids = [amg.build_point_grid(side) for side in sides]
    generator = _Generator(
        network, None, point_grids=grids, crop_n_layers=crop_n_layers, crop_overlap_ratio=crop_overlap_ratio, **settings
    )
    records = generator.generate(image)
    masks = np.array([record["segmentation"] for record in records], dtype=bool).reshape(-1, *image.shape[:2])
    scores, stability = (
        np.array([record[name] for record in records], dtype=np.float32)
        for name in ("predicted_iou", "stability_score")
    )
    points_xy = np.array([record["point_coords"][0] for record in records]).reshape(-1, 2)
    kept = slice(None)
    if min_mask_region_area > 0 and records:  # Meta's package would need OpenCV for this
        cleaned, changed = zip(*(without_small_regions(mask, min_mask_region_area) for mask in masks))
        masks = np.stack(cleaned)
        boxes = amg.batched_mask_to_box(torch.from_numpy(masks)).float()
        # Of masks that cleaning made alike, one that needed no cleaning is kept.
        unchanged = 1 - torch.tensor(changed, dtype=torch.float32)
        # Meta uses the larger threshold even without crops.
        kept = nms(boxes, unchanged, max(generator.box_nms_thresh, generator.crop_nms_thresh)).numpy()
    crops = zip(*amg.generate_crop_boxes(image.shape[:2], crop_n_layers, crop_overlap_ratio))
    grid_xy = [grids[layer] * (x1 - x0, y1 - y0) + (x0, y0) for (x0, y0, x1, y1), layer in crops]
    return Masks(masks[kept], scores[kept], stability[kept], points_xy[kept], np.concatenate(grid_xy))


def without_small_regions(mask, min_area):
    """Fill holes, then remove islands, of fewer than `min_area` pixels (8-connected).

    If all islands are small, the largest is kept, so that no mask becomes empty.

    Returns:
        The (H, W) mask, and whether it had small holes or islands.
    """
    filled = remove_small_holes(mask, max_size=min_area - 1, connectivity=2)
    cleaned = remove_small_objects(filled, max_size=min_area - 1, connectivity=2)
    changed = (filled != mask).any() or (cleaned != filled).any()
    if filled.any() and not cleaned.any():
        islands = skimage.measure.label(filled, connectivity=2)
        cleaned = islands == 1 + np.bincount(islands.ravel())[1:].argmax()
    return cleaned, bool(changed)
