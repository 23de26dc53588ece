import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from hw1lib.models import everything, weights

SIDE = 256  # of the reduced SAM's square input; the released ones read 1024

LANDSCAPE = np.ascontiguousarray(skimage.data.astronaut()[:180, 100:340])  # is enlarged
PORTRAIT = np.ascontiguousarray(skimage.data.chelsea()[:, 100:301])  # (300, 201): is shrunk


# ---- against Meta's own generator --------------------------------------------------------------


def reduced_sam():
    """Meta's SAM, all its parts, small: windowed and global attention, both position tables."""
    encoder = ImageEncoderViT(
        img_size=SIDE,
        embed_dim=32,
        depth=3,
        num_heads=2,
        out_chans=32,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=5,
        global_attn_indexes=(1,),
    )
    prompts = PromptEncoder(32, (SIDE // 16, SIDE // 16), (SIDE, SIDE), 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=48)
    return Sam(encoder, prompts, decoder).eval()


@torch.no_grad()
def random_sam(image):
    """Random weights whose masks are worth a comparison.

    Plain random weights give faint masks of the whole image. So every parameter gets noise (also
    those that start at zero), logits are scaled and shifted until 7 % of the image is mask,
    and predicted IoUs are spread around 0.88.
    """
    torch.manual_seed(0)
    sam = reduced_sam()
    decoder = sam.mask_decoder
    for parameter in sam.parameters():
        parameter += 0.15 * torch.randn(parameter.shape)
    # One channel of the upscaled embedding becomes constant, GELU(1) = 0.8413, to carry a shift.
    decoder.output_upscaling[3].weight[:, 0] = 0
    decoder.output_upscaling[3].bias[0] = 1
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[2].weight[0] = 0
        mlp.layers[2].bias[0] = 0

    predictor = SamPredictor(sam)
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
        head.bias[0] = float(-np.percentile(own * gain, 93) / 0.8413)
    head = decoder.iou_prediction_head.layers[2]
    gain = 0.1 / ious.std(0)
    head.weight[1:] *= gain[:, None]
    head.bias[1:] = (head.bias[1:] - ious.mean(0)) * gain + 0.88
    return sam


@pytest.fixture(scope="module", params=["landscape", "portrait"])
def both(request, tmp_path_factory):
    """An image, Meta's SAM, and ours loaded from the .pth that Meta's would be loaded from."""
    image = LANDSCAPE if request.param == "landscape" else PORTRAIT
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small only wait for each other on a busy machine
    theirs = random_sam(image)
    path = tmp_path_factory.mktemp("weights") / "sam_vit_b_01ec64.pth"
    torch.save(theirs.state_dict(), path)
    yield image, theirs, weights.load_sam(path)
    torch.set_num_threads(threads)


SETTINGS = {
    "points_per_side": 14,
    "points_per_batch": 60,  # does not divide 196
    "pred_iou_thresh": 0.8,
    "stability_score_thresh": 0.8,
    "box_nms_thresh": 0.9,
}


def by_point(points_xy, scores):
    """An order that two nearly equal scores cannot upset: by point, then by score."""
    x, y = np.asarray(points_xy).round(6).T
    return np.lexsort((scores, y, x))


def assert_equal(records, ours, at_least=20):
    """Meta's records and our Masks are the same."""
    assert len(records) == len(ours) >= at_least
    points = [record["point_coords"][0] for record in records]
    scores = [record["predicted_iou"] for record in records]
    order = by_point(points, scores), by_point(ours.points_xy, ours.scores)
    for their, our in zip(*order):
        record, mask = records[their], ours.masks[our]
        union = (mask | record["segmentation"]).sum()
        assert (mask & record["segmentation"]).sum() >= 0.99 * union  # 0 of 0 for empty masks
        assert abs(record["predicted_iou"] - ours.scores[our]) < 1e-3
        stability = record["stability_score"], ours.stability[our]
        assert np.isclose(*stability, atol=1e-3, equal_nan=True)
        x, y, width, height = record["bbox"]
        assert np.abs(ours.boxes_xyxy[our] - (x, y, x + width, y + height)).max() <= 1
        assert np.allclose(record["point_coords"][0], ours.points_xy[our])
        assert abs(record["area"] - ours.areas[our]) <= 0.01 * record["area"]


def test_masks_equal_metas(both):
    image, theirs, sam = both
    records = SamAutomaticMaskGenerator(theirs, **SETTINGS).generate(image)
    ours = everything.sam_everything(image, sam, **SETTINGS)
    assert_equal(records, ours)
    assert (np.diff(ours.scores) <= 0).all()
    assert len(ours.grid_xy) == 14**2


def test_each_threshold_refuses_as_many_as_metas(both):
    image, theirs, sam = both
    settings = {**SETTINGS, "points_per_side": 6}
    counts = []
    for off in ({}, {"box_nms_thresh": 1.0}, {"stability_score_thresh": 0}, {"pred_iou_thresh": 0}):
        settings.update(off)  # one after the other
        records = SamAutomaticMaskGenerator(theirs, **settings).generate(image)
        assert_equal(records, everything.sam_everything(image, sam, **settings), at_least=5)
        counts.append(len(records))
    assert counts[0] < counts[1] < counts[2] < counts[3] == 3 * 6**2


def test_small_regions_are_cleaned_as_metas(both, monkeypatch):
    image, theirs, sam = both

    def components(mask, connectivity):
        assert connectivity == 8
        regions, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        areas = np.bincount(regions.ravel(), minlength=count + 1)
        return count + 1, regions, areas[:, None], None

    # Meta's package wants OpenCV for this one function.
    monkeypatch.setitem(
        sys.modules, "cv2", SimpleNamespace(connectedComponentsWithStats=components)
    )
    settings = {**SETTINGS, "min_mask_region_area": 30}
    records = SamAutomaticMaskGenerator(theirs, **settings).generate(image)
    ours = everything.sam_everything(image, sam, **settings)
    plain = everything.sam_everything(image, sam, **SETTINGS)
    assert_equal(records, ours, at_least=5)
    assert len(ours) < len(plain) or (ours.areas != plain.areas).any()


def test_no_mask_survives(both):
    image, _, sam = both
    for refusing in ({"pred_iou_thresh": 9.0}, {"stability_score_thresh": 2.0}):
        found = everything.sam_everything(
            image, sam, points_per_side=3, min_mask_region_area=5, **refusing
        )
        assert len(found) == 0
        assert found.masks.shape == (0, *image.shape[:2])
        assert found.boxes_xyxy.shape == (0, 4) and found.points_xy.shape == (0, 2)
        assert everything.partition(found.masks).max() == 0


# ---- the parts --------------------------------------------------------------------------------


def test_point_grid_has_equal_cells():
    grid = everything.point_grid(4)
    assert grid.shape == (16, 2)
    assert np.allclose(grid[0], 1 / 8) and np.allclose(grid[-1], 7 / 8)
    assert np.allclose(grid[1] - grid[0], (1 / 4, 0))  # x runs first


def test_stability_is_an_iou():
    logits = torch.tensor([[[3.0, 0.5, -0.5, -3.0]], [[2.0, 2.0, 2.0, -2.0]], [[-9.0] * 4]])
    stability = everything.stability_scores(logits, 1.0)
    assert stability[:2].tolist() == [pytest.approx(1 / 3), 1.0]
    assert stability[2].isnan()


def test_mask_boxes_by_hand_and_by_brute_force():
    masks = np.random.default_rng(0).random((40, 7, 9)) < 0.08
    masks[0] = False
    masks[1] = True
    boxes = everything.mask_boxes(masks)
    assert boxes[0].tolist() == [0, 0, 0, 0]
    assert boxes[1].tolist() == [0, 0, 8, 6]
    for mask, box in zip(masks, boxes):
        if mask.any():
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]


def test_small_holes_fill_and_small_islands_vanish():
    mask = np.zeros((12, 12), dtype=bool)
    mask[1:9, 1:9] = True
    mask[3, 3] = False  # a hole of 1
    mask[5:8, 5:8] = False  # a hole of 9
    mask[11, 11] = True  # an island of 1
    cleaned, changed = everything.without_small_regions(mask, 4)
    assert changed
    assert cleaned[3, 3] and not cleaned[6, 6] and not cleaned[11, 11]
    assert cleaned.sum() == 64 - 9
    same, changed = everything.without_small_regions(cleaned, 4)
    assert not changed and np.array_equal(same, cleaned)

    crumbs = np.zeros((9, 9), dtype=bool)
    crumbs[0, 0] = crumbs[4, 4:6] = True
    largest, _ = everything.without_small_regions(crumbs, 4)
    assert largest.sum() == 2 and largest[4, 4]


# ---- the classical segmenters --------------------------------------------------------------------


@pytest.mark.parametrize("method", [everything.slic, everything.felzenszwalb])
@pytest.mark.parametrize("segments", [12, 64])
def test_classical_masks_are_a_partition(method, segments):
    image = skimage.data.coffee()[100:228, 200:297]  # (128, 97)
    found = method(image, segments)
    assert (found.masks.sum(axis=0) == 1).all()
    assert found.areas.min() > 0
    assert abs(len(found) - segments) <= segments / 4
    assert np.isnan(found.scores).all() and len(found.scores) == len(found)
    again = method(image, segments)
    assert np.array_equal(found.masks, again.masks)
    index = len(found) // 2
    y, x = np.nonzero(found.masks[index])
    assert np.allclose(found.points_xy[index], (x.mean(), y.mean()))


def test_slic_reports_the_seeds_it_starts_from():
    # On a flat image nothing pulls: each seed keeps its cell.
    found = everything.slic(np.full((32, 48, 3), 90, dtype=np.uint8), 24)
    assert found.grid_xy.tolist() == [[x, y] for y in range(4, 32, 8) for x in range(4, 48, 8)]
    assert len(found) == 24
    x, y = found.grid_xy.astype(int).T
    assert (found.masks[:, y, x].sum(axis=0) == 1).all()
    assert (found.masks[:, y, x].sum(axis=1) == 1).all()


def test_felzenszwalb_finds_plain_areas_and_comes_as_near_as_it_can():
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[:, 30:] = 200
    image[30:, :30] = 90
    assert len(everything.felzenszwalb(image, 3)) == 3
    assert len(everything.felzenszwalb(np.zeros((20, 20, 3), dtype=np.uint8), 50)) == 1
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    counts = [len(everything.felzenszwalb(noise, wish)) for wish in (10, 40, 160)]
    assert np.allclose(counts, (10, 40, 160), rtol=0.2)


# ---- partition -----------------------------------------------------------------------------------


def test_partition_paints_larger_masks_first():
    masks = np.zeros((4, 6, 8), dtype=bool)
    masks[0, 2:4, 2:4] = True  # small, lies on top although it comes first
    masks[1, 1:5, 1:5] = True
    masks[2, 1:3, 1:3] = True  # of the size of masks[0], and later: on top of it
    masks[3, :, 7] = True
    labels = everything.partition(masks)
    assert labels[1, 1] == labels[2, 2] != labels[3, 3]
    assert labels[4, 4] != labels[3, 3]
    assert labels[0, 7] == labels[5, 7]
    # four masks and one connected rest
    assert sorted(np.unique(labels)) == list(range(5))
    assert labels[0, 0] == labels[5, 6]


def test_partition_splits_what_no_mask_covers():
    wall = np.zeros((1, 5, 7), dtype=bool)
    wall[0, :, 3] = True
    labels = everything.partition(wall)
    assert labels.max() == 2
    assert labels[0, 0] != labels[0, 6]


def test_partition_loses_buried_masks_and_keeps_partitions():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0] = True
    masks[1, :2] = masks[2, 2:] = True
    assert everything.partition(masks).max() == 1  # masks[0] is painted over
    found = everything.slic(LANDSCAPE, 30)
    labels = everything.partition(found.masks)
    assert np.array_equal(labels, found.masks.argmax(axis=0))


def test_partition_by_brute_force():
    random = np.random.default_rng(1)
    for _ in range(20):
        masks = random.random((5, 6, 6)) < 0.35
        labels = everything.partition(masks)
        assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
        areas = masks.sum(axis=(1, 2))
        top = {}
        for y, x in np.ndindex(6, 6):
            covering = [(areas[m], -m) for m in range(5) if masks[m, y, x]]
            owner = -min(covering)[1] if covering else ("rest", 0)
            top.setdefault(labels[y, x], set()).add(owner)
        assert all(len(owners) == 1 for owners in top.values())
