"""SAM's everything mode equals Meta's own generator: masks, thresholds, crops and cleaning."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils import amg

from hw1lib.models import sam, weights

SIDE = 256  # of the reduced SAM's square input; the released ones read 1024
IMAGES = {
    "landscape": np.ascontiguousarray(skimage.data.astronaut()[:180, 100:340]),  # is enlarged
    "portrait": np.ascontiguousarray(skimage.data.chelsea()[:, 100:301]),  # (300, 201): is shrunk
}


# ---- against Meta's own generator --------------------------------------------------------------


def reduced_sam():
    """Meta's SAM, all its parts, small: windowed and global attention, both position tables."""
    encoder = ImageEncoderViT(
        img_size=SIDE, embed_dim=32, depth=3, num_heads=2, out_chans=32, use_rel_pos=True, window_size=5,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), global_attn_indexes=(1,),
    )  # fmt: skip
    prompts = PromptEncoder(32, (SIDE // 16, SIDE // 16), (SIDE, SIDE), 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=48)
    return Sam(encoder, prompts, decoder).eval()


@torch.no_grad()
def random_sam(image):
    """Random weights whose masks are worth a comparison.

    Plain random weights give faint masks of the whole image. So every parameter gets noise (also
    those that start at zero), logits are scaled and shifted until 2 % of the image is mask,
    and predicted IoUs are spread around 0.88.
    """
    torch.manual_seed(0)
    network = reduced_sam()
    decoder = network.mask_decoder
    for parameter in network.parameters():
        parameter += 0.15 * torch.randn(parameter.shape)
    # One channel of the upscaled embedding becomes constant, GELU(1) = 0.8413, to carry a shift.
    decoder.output_upscaling[3].weight[:, 0] = 0
    decoder.output_upscaling[3].bias[0] = 1
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[2].weight[0] = 0
        mlp.layers[2].bias[0] = 0

    predictor = SamPredictor(network)
    predictor.set_image(image)
    filled = predictor.input_size[0] // 4, predictor.input_size[1] // 4
    points = torch.rand(64, 1, 2) * torch.tensor(predictor.input_size[::-1])
    _, ious, logits = predictor.predict_torch(points, torch.ones(64, 1), multimask_output=True)
    for index in range(3):
        head = decoder.output_hypernetworks_mlps[index + 1].layers[2]
        own = logits[:, index, : filled[0], : filled[1]]
        gain = 200 / own.std()
        head.weight *= gain
        head.bias *= gain
        head.bias[0] = float(-np.percentile(own * gain, 98) / 0.8413)
    head = decoder.iou_prediction_head.layers[2]
    gain = 0.1 / ious.std(0)
    head.weight[1:] *= gain[:, None]
    head.bias[1:] = (head.bias[1:] - ious.mean(0)) * gain + 0.88
    return network


@pytest.fixture(scope="module", params=IMAGES)
def both(request, tmp_path_factory):
    """An image, Meta's SAM, and ours loaded from the .pth that Meta's would be loaded from."""
    image = IMAGES[request.param]
    theirs = random_sam(image)
    path = tmp_path_factory.mktemp("weights") / "sam_vit_b_01ec64.pth"
    torch.save(theirs.state_dict(), path)
    return image, theirs, weights.load_sam(path)


@pytest.fixture(autouse=True)
def opencv(monkeypatch):
    """Meta's package wants OpenCV for one function; this one stands in for it."""

    def components(mask, connectivity):
        assert connectivity == 8
        regions, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        return count + 1, regions, np.bincount(regions.ravel(), minlength=count + 1)[:, None], None

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(connectedComponentsWithStats=components))


def by_point(points_xy, scores):
    """An order that two nearly equal scores cannot upset: by point, then by score."""
    x, y = np.asarray(points_xy).round(6).T
    return np.lexsort((scores, y, x))


def compared(both, at_least=5, **settings):
    """Our Masks, after they were held against Meta's records; and those records in the order of our masks."""
    image, theirs, network = both
    records = SamAutomaticMaskGenerator(theirs, **settings).generate(image)
    ours = sam.sam_everything(image, network, **settings)
    assert len(records) == len(ours) == list(ours.funnel.values())[-1] >= at_least
    points = [record["point_coords"][0] for record in records]
    order = by_point(points, [record["predicted_iou"] for record in records]), by_point(ours.points_xy, ours.scores)
    for their, our in zip(*order):
        record, mask = records[their], ours.masks[our]
        union = (mask | record["segmentation"]).sum()
        assert (mask & record["segmentation"]).sum() >= 0.99 * union  # 0 of 0 for empty masks
        assert abs(record["predicted_iou"] - ours.scores[our]) < 1e-3
        assert np.isclose(record["stability_score"], ours.stability[our], atol=1e-3, equal_nan=True)
        x, y, width, height = record["bbox"]
        assert np.abs(ours.boxes_xyxy[our] - (x, y, x + width, y + height)).max() <= 1
        assert np.allclose(record["point_coords"][0], ours.points_xy[our])
        assert abs(record["area"] - ours.areas[our]) <= 0.01 * record["area"]
    partner = dict(zip(order[1], order[0]))
    return ours, [records[partner[our]] for our in range(len(ours))]


SETTINGS = {
    "points_per_side": 14, "points_per_batch": 60,  # does not divide 196
    "pred_iou_thresh": 0.8, "stability_score_thresh": 0.8, "box_nms_thresh": 0.9,
}  # fmt: skip


@pytest.mark.slow
def test_masks_equal_metas_and_are_cleaned_alike(both):
    plain, _ = compared(both, 20, **SETTINGS)
    assert (np.diff(plain.scores) <= 0).all() and len(plain.grid_xy) == 14**2
    cleaned, _ = compared(both, **SETTINGS, min_mask_region_area=30)
    assert len(cleaned) < len(plain) or (cleaned.areas != plain.areas).any()
    assert list(cleaned.funnel)[:-1] == list(plain.funnel) and list(cleaned.funnel)[-1] == "distinct after cleaning"


@pytest.mark.slow
def test_each_threshold_refuses_as_many_as_metas(both):
    """And the funnel counts what each one leaves: what Meta's generator gives without those behind it."""
    settings, counts, funnels = SETTINGS | {"points_per_side": 5}, [], []
    for off in ({}, {"box_nms_thresh": 1.0}, {"stability_score_thresh": 0}, {"pred_iou_thresh": 0}):
        settings |= off  # one after the other
        ours, _ = compared(both, **settings)
        counts.append(len(ours))
        funnels.append(ours.funnel)
    assert counts[0] < counts[1] < counts[2] < counts[3] == 3 * 5**2
    assert funnels[0] == {
        "points": 25, "candidate masks": counts[3], "predicted IoU high enough": counts[2], "stable": counts[1],
        "away from the crop's edges": counts[1], "distinct by box NMS": counts[0],
    }  # fmt: skip
    image, _, network = both
    for refusing in ({"pred_iou_thresh": 9.0}, {"stability_score_thresh": 2.0}):
        found = sam.sam_everything(
            image, network, points_per_side=3, min_mask_region_area=5, crop_n_layers=1, **refusing
        )
        assert len(found) == 0 == found.funnel["distinct between crops"] and found.masks.shape == (0, *image.shape[:2])
        assert found.boxes_xyxy.shape == (0, 4) and found.points_xy.shape == (0, 2)


CROPS = {
    "points_per_side": 11, "points_per_batch": 60, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.4,
    "stability_score_offset": 0.7, "crop_overlap_ratio": 0.3, "crop_n_points_downscale_factor": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "area", "thresholds"),
    [(1, 0, (0.9, 0.7)), (1, 100, (0.4, 0.95)), (2, 0, (0.7, 0.9)), (2, 100, (0.95, 0.4))],
)
def test_crops_equal_metas(both, layers, area, thresholds):
    box, crop = thresholds
    more = {"box_nms_thresh": box, "crop_nms_thresh": crop, "crop_n_layers": layers, "min_mask_region_area": area}
    ours, records = compared(both, 20, **CROPS, **more)
    height, width = both[0].shape[:2]
    crop_areas = np.array([w * h for _, _, w, h in (record["crop_box"] for record in records)])
    # Of all masks some come from each layer, whose crops show all, about 0.4 and 0.1 of the image.
    assert len(set(np.digitize(crop_areas / (height * width), (0.25, 0.75)))) == layers + 1
    assert area or (np.diff(crop_areas) >= 0).all()
    assert len(ours.grid_xy) == ours.funnel["points"] == 11**2 + 4 * 5**2 + (layers > 1) * 16 * 2**2
    counts = list(ours.funnel.values())[1:]
    assert counts == sorted(counts, reverse=True) and counts[0] == 3 * len(ours.grid_xy)
    grid = {tuple(point) for point in ours.grid_xy.round(6)}
    assert grid >= {tuple(point) for point in ours.points_xy.round(6)}
    assert (ours.grid_xy > 0).all() and (ours.grid_xy < (width, height)).all()


def test_an_untrained_stand_in_runs_through_every_stage():
    """The same for the same seed, on any image; its masks differ from point to point."""
    every = {"pred_iou_thresh": -1e9, "stability_score_thresh": -1.0, "box_nms_thresh": 1.0, "points_per_side": 4}
    image = IMAGES["landscape"]
    first, again, other = (sam.sam_everything(image, sam.untrained(n), **every) for n in (0, 0, 1))
    assert np.array_equal(first.masks, again.masks) and first.masks.shape == (48, *image.shape[:2])
    assert first.funnel["candidate masks"] == 48 and np.isfinite(first.scores).all()
    assert len(np.unique(first.masks.reshape(48, -1), axis=0)) > 20 and (other.masks != first.masks).any()


# ---- the parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(180, 240), (301, 200), (7, 5)])
@pytest.mark.parametrize("overlap_ratio", [0, 512 / 1500, 1])
def test_crop_boxes_are_metas(size, overlap_ratio):
    for layers in range(3 if min(size) < 16 else 4):
        theirs = [(tuple(box), n) for box, n in zip(*amg.generate_crop_boxes(size, layers, overlap_ratio))]
        ours = sam.crops(*size, layers, overlap_ratio)
        # Meta's are sometimes empty or beyond the image where it is tiny: nothing to look at there.
        assert ours == [(box, n) for box, n in theirs if box[0] < box[2] and box[1] < box[3]]
        assert len(ours) == len(theirs) or size == (7, 5)


def test_boxes_near_inner_edges_are_metas():
    whole, random = (0, 0, 300, 200), np.random.default_rng(0)
    for crop in ((0, 0, 180, 120), (120, 80, 300, 200), (10, 20, 200, 185), whole):
        corners = random.integers(0, (crop[2] - crop[0], crop[3] - crop[1]), (500, 2, 2))
        boxes = np.sort(corners, axis=1).reshape(-1, 4)
        boxes[:4] = [[20, 60, 60, 80], [21, 60, 60, 80], [60, 60, 159, 80], [60, 60, 160, 80]]
        theirs = amg.is_box_near_crop_edge(torch.from_numpy(boxes), list(crop), list(whole))
        ours = sam.near_inner_edge(boxes + (crop[:2] * 2), crop, whole)
        assert ours.tolist() == theirs.tolist() and ours.any() == (crop != whole) and not ours.all()


@pytest.mark.parametrize("filled", [0, 0.05, 0.2, 0.5, 0.8, 1])
def test_small_holes_and_islands_are_metas(filled):
    """Where all islands are small, the largest stays."""
    for mask in np.random.default_rng(0).random((20, 12, 12)) < filled:
        theirs, holes = amg.remove_small_regions(mask, 4, "holes")
        theirs, islands = amg.remove_small_regions(theirs, 4, "islands")
        ours, changed = sam.without_small_regions(mask, 4)
        assert np.array_equal(ours, theirs) and changed == (holes or islands)
