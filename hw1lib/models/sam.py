"""SAM (Kirillov et al. 2023, Segment Anything): its weights, and its everything mode.

The network, its prompts and most filters are Meta's package segment-anything. `sam_everything` goes through the steps
of its SamAutomaticMaskGenerator, and also counts the masks that each filter leaves, enlarges only good masks, which
saves most of the memory, and needs no OpenCV. Tests compare the masks of both.
"""

import collections
import re

import numpy as np
import safetensors.torch
import skimage.measure
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils import amg
from skimage.morphology import remove_small_holes, remove_small_objects
from torchvision.ops import nms

from hw1lib.models import pretrained
from hw1lib.models.superpixels import Masks
from hw1lib.models.weights import SAM_HINT, SAM_PARTS

ENCODERS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by the width of their features

# Meta's names of tensors, and those in Hugging Face's folders; applied in this order.
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
        path: the folder with config.json and model.safetensors, or the .pth file. It is memory-mapped: only its
            names and shapes are read at first.

    Returns:
        segment_anything's Sam in eval mode, float32, on the CPU.

    Raises:
        UserError: the file is damaged or does not hold exactly the tensors of a SAM.
    """
    remedy = f"Delete it and get it again: {SAM_HINT.partition(': ')[2]}"
    with pretrained.readable_errors(path, "SAM's weights", remedy):
        folder = path.is_dir()
        content = safetensors.torch.load_file(path / SAM_PARTS[1]) if folder else pretrained.read_pickle(path)
        encoder = "vision_encoder." if folder else "image_encoder."
        state = pretrained.the_only(pretrained.find_state_dicts(content, f"{encoder}pos_embed"), content, "SAM")
        size = ENCODERS.get(state[f"{encoder}pos_embed"].shape[-1])
        if size is None:
            raise ValueError(f"its encoder is none of SAM's, {', '.join(ENCODERS.values())}")
        with torch.device("meta"):  # needs no memory and draws no random numbers
            network = sam_model_registry[size]()
        expected = network.state_dict()
        state = from_hugging_face(state, expected) if folder else state
        pretrained.check_fit(state, expected, f"SAM's {size}", content)
        network.load_state_dict(state, assign=True)
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
    tensors = dict(tensors)
    twin = tensors.pop("prompt_encoder.shared_embedding.positional_embedding", None)  # one matrix under two names
    if twin is not None:
        tensors["shared_image_embedding.positional_embedding"] = twin
    other_names = {name: hugging_face_name(name) for name in names}
    return {name: tensors[other] for name, other in other_names.items() if other in tensors}


def hugging_face_name(name):
    """Return the name in Hugging Face's folders of one of Meta's tensors."""
    for pattern, replacement in _HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def untrained(seed=5, side=256):
    """Build a small SAM with random weights, to try the generator without SAM's own; its masks mean nothing.

    Args:
        seed: whole number.
        side: of the square that it reads, in pixels.
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
        decoder.output_upscaling[3].bias[0] = 1  # a constant channel, by which every mask's logits are lowered
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 20
            mlp.layers[-1].weight[0] = 0
            mlp.layers[-1].bias[0] = -8
        decoder.iou_prediction_head.layers[-1].weight *= 0.1
        decoder.iou_prediction_head.layers[-1].bias.fill_(0.9)
    return network.eval()


@torch.inference_mode()
def sam_everything(
    image,
    network,
    *,
    points_per_side=32,
    points_per_batch=64,
    pred_iou_thresh=0.88,
    stability_score_thresh=0.95,
    stability_score_offset=1.0,
    box_nms_thresh=0.7,
    crop_n_layers=0,
    crop_overlap_ratio=512 / 1500,
    crop_n_points_downscale_factor=1,
    crop_nms_thresh=0.7,
    min_mask_region_area=0,
):
    """Prompt SAM with a grid of points and keep the good, distinct masks.

    The settings have the names and defaults of Meta's generator (Kirillov et al. 2023, appendix B).

    Args:
        image: (H, W, 3) uint8 RGB image of any size.
        network: segment_anything's Sam in eval mode, on any device.
        points_per_side: number of grid points along each side.
        points_per_batch: points decoded at once; it changes memory and speed, not the masks.
        pred_iou_thresh: masks must have a higher predicted IoU; 0 keeps all.
        stability_score_thresh: masks must have at least this stability score; 0 keeps all.
        stability_score_offset: logits by which the cut-off is shifted to measure stability.
        box_nms_thresh: of two masks whose boxes have a higher IoU, only the better one is kept.
        crop_n_layers: after the whole image, layer 1, 2, … looks at 4, 16, … crops, enlarged.
        crop_overlap_ratio: overlap of layer 1's crops as a fraction of the image's shorter side; it halves with each
            further layer.
        crop_n_points_downscale_factor: each layer has this many times fewer points along each side than the one before.
        crop_nms_thresh: box_nms_thresh between crops, where the smaller crop's mask is kept.
        min_mask_region_area: smaller islands are removed and smaller holes filled; 0 leaves them.

    Returns:
        Masks. Those of smaller crops come first, and within a crop the best predicted IoU; with
        min_mask_region_area those that needed no cleaning come before all others. There may be none at all.
    """
    height, width = image.shape[:2]
    predictor = SamPredictor(network)
    grids, parts, funnel = [], [], collections.Counter()
    thresholds = (pred_iou_thresh, stability_score_thresh, stability_score_offset)
    for box, layer in zip(*amg.generate_crop_boxes((height, width), crop_n_layers, crop_overlap_ratio)):
        x0, y0, x1, y1 = box
        if x0 >= x1 or y0 >= y1:  # rounding puts some crops of a tiny image outside it
            continue
        side = max(1, int(points_per_side / crop_n_points_downscale_factor**layer))
        grid_xy = amg.build_point_grid(side) * (x1 - x0, y1 - y0)
        grids.append(grid_xy + (x0, y0))
        predictor.set_image(image[y0:y1, x0:x1])
        part = _candidates(predictor, grid_xy, points_per_batch, *thresholds, funnel)
        near_edge = amg.is_box_near_crop_edge(amg.batched_mask_to_box(part[0]), box, [0, 0, width, height])
        part = _select(part, ~near_edge)
        funnel["away from the crop's edges"] += len(part[0])
        masks, scores, stability, points_xy = _select(part, _distinct(*part[:2], box_nms_thresh))
        funnel["distinct by box NMS"] += len(masks)
        smallness = torch.full((len(masks),), 1 / ((x1 - x0) * (y1 - y0)))
        # Masks get the image's size only now, because there can be very many crops.
        masks = amg.uncrop_masks(masks, box, height, width)
        parts.append((masks, scores, stability, points_xy + torch.tensor([x0, y0]), smallness))

    *kept, smallness = (torch.cat(tensors) for tensors in zip(*parts))
    if crop_n_layers > 0:
        kept = _select(kept, _distinct(kept[0], smallness, crop_nms_thresh))
        funnel["distinct between crops"] = len(kept[0])
    if min_mask_region_area > 0 and len(kept[0]):
        cleaned, changed = zip(*(without_small_regions(mask, min_mask_region_area) for mask in kept[0].numpy()))
        # Of masks that cleaning made alike, one that needed no cleaning is kept.
        kept[0], unchanged = torch.from_numpy(np.stack(cleaned)), 1 - torch.tensor(changed, dtype=torch.float32)
        # Meta uses the larger threshold even without crops.
        kept = _select(kept, _distinct(kept[0], unchanged, max(box_nms_thresh, crop_nms_thresh)))
        funnel["distinct after cleaning"] = len(kept[0])
    return Masks(*(tensor.numpy() for tensor in kept), np.concatenate(grids), dict(funnel))


def _candidates(predictor, grid_xy, points_per_batch, pred_iou_thresh, stability_score_thresh, offset, funnel):
    """Find the masks of one crop that pass both thresholds, duplicates included.

    Args:
        predictor: SamPredictor with the crop's image, (h, w).
        grid_xy: (P, 2) prompt points in the crop's pixels.
        points_per_batch, pred_iou_thresh, stability_score_thresh, offset: as for `sam_everything`.
        funnel: Counter that counts points and masks after each filter.

    Returns:
        (N, h, w) bool masks, (N,) predicted IoU, (N,) stability and (N, 2) points, all on the CPU.
    """
    parts = []
    for points_xy in torch.from_numpy(grid_xy).split(points_per_batch):
        logits, scores = _decode(predictor, points_xy)
        part = [logits.flatten(0, 1), scores.flatten(), points_xy.repeat_interleave(scores.shape[1], dim=0)]
        funnel["points"] += len(points_xy)
        funnel["candidate masks"] += len(part[0])
        if pred_iou_thresh > 0:
            part = _select(part, part[1] > pred_iou_thresh)
        funnel["predicted IoU high enough"] += len(part[0])
        logits, scores, points_xy = part
        if len(logits):  # PyTorch cannot resize an empty batch
            sizes = predictor.input_size, predictor.original_size
            logits = predictor.model.postprocess_masks(logits[:, None], *sizes)[:, 0]
        else:
            logits = logits.new_zeros((0, *predictor.original_size))
        stability = amg.calculate_stability_score(logits, 0.0, offset)
        part = [logits > 0, scores, stability, points_xy]
        if stability_score_thresh > 0:
            part = _select(part, stability >= stability_score_thresh)
        funnel["stable"] += len(part[0])
        parts.append([tensor.cpu() for tensor in part])
    return [torch.cat(tensors) for tensors in zip(*parts)]


def _decode(predictor, points_xy):
    """Predict three masks for each of (N, 2) points, as (N, 3, h, w) logits at low resolution and (N, 3) IoU."""
    prompts, network = predictor.model.prompt_encoder, predictor.model
    points = predictor.transform.apply_coords(points_xy.numpy(), predictor.original_size)[:, None]
    points = torch.as_tensor(points, dtype=torch.float32, device=predictor.device)  # (N, 1, 2)
    labels = torch.ones(points.shape[:2], dtype=torch.int, device=predictor.device)
    sparse, dense = prompts(points=(points, labels), boxes=None, masks=None)
    return network.mask_decoder(predictor.features, prompts.get_dense_pe(), sparse, dense, multimask_output=True)


def _distinct(masks, scores, threshold):
    """Return the indices of the masks that box NMS keeps, best score first."""
    return nms(amg.batched_mask_to_box(masks).float(), scores, threshold)


def _select(tensors, keep):
    """Select the same rows, by index or by bool, of several tensors."""
    return [tensor[keep.to(tensor.device)] for tensor in tensors]


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
