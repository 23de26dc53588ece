"""SAM: weights from both formats, and masks equal to those of Meta's own generator."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.utils import amg
from torchvision.models import resnet18
from transformers import SamConfig, SamModel

from hw1lib.models import sam
from tests.models.conftest import prefixed, refused

IMAGES = {
    "landscape": np.ascontiguousarray(skimage.data.astronaut()[:180, 100:340]),  # is enlarged
    "portrait": np.ascontiguousarray(skimage.data.chelsea()[:, 100:301]),  # (300, 201): is shrunk
}
ALL = {"pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1.0}


@pytest.fixture(scope="module", params=IMAGES)
def case(request):
    """An image, and a random SAM whose predicted IoU is spread around 0.88 and whose masks take 2 % of the image."""
    image, network = IMAGES[request.param], sam.untrained(1)
    decoder, predictor = network.mask_decoder, SamPredictor(network)
    with torch.no_grad():
        # One channel of the upscaled embedding becomes constant, GELU(1) = 0.8413, to carry a shift of the logits.
        decoder.output_upscaling[3].weight[:, 0], decoder.output_upscaling[3].bias[0] = 0, 1
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[2].weight[0], mlp.layers[2].bias[0] = 0, 0
        predictor.set_image(image)
        points = torch.rand(64, 1, 2) * torch.tensor(predictor.input_size[::-1])
        logits, ious, _ = predictor.predict_torch(points, torch.ones(64, 1), return_logits=True)
        for index, mlp in enumerate(decoder.output_hypernetworks_mlps[1:]):
            gain = 200 / logits[:, index].std()
            mlp.layers[2].weight *= gain
            mlp.layers[2].bias *= gain
            mlp.layers[2].bias[0] = float(-np.percentile(logits[:, index] * gain, 98) / 0.8413)
        head, gain = decoder.iou_prediction_head.layers[2], 0.1 / ious.std(0)
        head.weight[1:] *= gain[:, None]
        head.bias[1:] = (head.bias[1:] - ious.mean(0)) * gain + 0.88
    return image, network


@pytest.fixture
def opencv(monkeypatch):
    """Stand in for the one function of OpenCV that Meta's package calls."""

    def components(mask, connectivity):
        regions, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        return count + 1, regions, np.bincount(regions.ravel(), minlength=count + 1)[:, None], None

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(connectedComponentsWithStats=components))


def compare(case, **settings):
    """Compare our masks with Meta's, and return ours."""
    image, network = case
    records = SamAutomaticMaskGenerator(network, **settings).generate(image)
    masks = sam.sam_everything(image, network, **settings)
    assert len(records) == len(masks) == list(masks.funnel.values())[-1] >= 5
    theirs = sorted(records, key=lambda record: (*np.round(record["point_coords"][0], 6), record["predicted_iou"]))
    for record, row in zip(theirs, np.lexsort((masks.scores, *masks.points_xy.round(6).T[::-1]))):
        mask, points = masks.masks[row], masks.points_xy[row]
        union = (mask | record["segmentation"]).sum()
        assert (mask & record["segmentation"]).sum() >= 0.99 * union  # also where both are empty
        assert np.allclose(record["point_coords"][0], points, atol=1e-3)
        numbers = record["predicted_iou"], record["stability_score"]
        assert np.allclose(numbers, (masks.scores[row], masks.stability[row]), atol=1e-3, equal_nan=True)
    return masks


@pytest.mark.slow
def test_masks_equal_metas_and_the_funnel_counts_each_filter(case):
    settings = {"points_per_side": 8, "points_per_batch": 60, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.8,
                "box_nms_thresh": 0.9}  # fmt: skip
    counts = []
    for off in ({}, {"box_nms_thresh": 1.0}, {"stability_score_thresh": 0}, {"pred_iou_thresh": 0}):
        settings |= off  # one filter after the other
        masks = compare(case, **settings)
        assert (np.diff(masks.scores) <= 0).all()
        counts.append(len(masks))
        if not off:
            funnel = masks.funnel
    assert counts[0] < counts[1] < counts[2] < counts[3] == 3 * 8**2
    assert funnel == {
        "points": 64, "candidate masks": counts[3], "predicted IoU high enough": counts[2], "stable": counts[1],
        "away from the crop's edges": counts[1], "distinct by box NMS": counts[0],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "area", "box", "crop"), [(0, 30, 0.9, 0.7), (1, 0, 0.9, 0.7), (2, 100, 0.4, 0.95)])
def test_crops_and_cleaning_equal_metas(case, opencv, layers, area, box, crop):
    masks = compare(
        case, points_per_side=9, pred_iou_thresh=0.6, stability_score_thresh=0.4, stability_score_offset=0.7,
        crop_overlap_ratio=0.3, crop_n_points_downscale_factor=2, crop_n_layers=layers, min_mask_region_area=area,
        box_nms_thresh=box, crop_nms_thresh=crop,
    )  # fmt: skip
    assert len(masks.grid_xy) == masks.funnel["points"] == 9**2 + (layers > 0) * 4 * 4**2 + (layers > 1) * 16 * 2**2
    grid = {tuple(point) for point in masks.grid_xy.round(3)}
    assert grid >= {tuple(point) for point in masks.points_xy.round(3)}
    optional = ["distinct between crops"] * (layers > 0) + ["distinct after cleaning"] * (area > 0)
    assert list(masks.funnel)[6:] == optional


@pytest.mark.parametrize("refusing", [{"pred_iou_thresh": 9.0}, {"stability_score_thresh": 2.0}])
def test_no_mask_at_all_and_a_tiny_image_are_no_errors(refusing):
    image = IMAGES["landscape"][:5, :7]
    settings = {"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 3, "crop_overlap_ratio": 1}
    masks = sam.sam_everything(image, sam.untrained(side=64), min_mask_region_area=5, **settings, **refusing)
    assert masks.masks.shape == (0, 5, 7) and masks.points_xy.shape == (0, 2) and len(masks.grid_xy) > 4
    assert masks.funnel["distinct between crops"] == 0


def test_an_untrained_sam_gives_diverse_and_reproducible_masks():
    image, settings = IMAGES["landscape"], ALL | {"points_per_side": 4}
    first, again, other = (sam.sam_everything(image, sam.untrained(seed), **settings) for seed in (5, 5, 6))
    assert np.array_equal(first.masks, again.masks) and (other.masks != first.masks).any()
    assert np.isfinite(first.scores).all() and np.median(first.scores) > 0
    assert len(np.unique(first.masks.reshape(48, -1), axis=0)) > 20


@pytest.mark.parametrize("density", [0, 0.05, 0.2, 0.5, 0.8, 1])
def test_small_holes_and_islands_are_metas(opencv, density):
    for mask in np.random.default_rng(0).random((20, 12, 12)) < density:
        expected, holes = amg.remove_small_regions(mask, 4, "holes")
        expected, islands = amg.remove_small_regions(expected, 4, "islands")
        cleaned, changed = sam.without_small_regions(mask, 4)
        assert np.array_equal(cleaned, expected) and changed == (holes or islands)


# --- weights


@pytest.fixture(scope="module")
def vit_b():
    """State dict of Meta's smallest SAM; each tensor is one repeated number, so its file is small."""
    with torch.device("meta"):
        state = sam_model_registry["vit_b"]().state_dict()
    return {name: torch.tensor(float(n)).expand(tensor.shape) for n, (name, tensor) in enumerate(state.items())}


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}, prefixed("module.")])
def test_a_pth_loads(vit_b, tmp_path, wrap):
    torch.save(wrap(vit_b), tmp_path / "sam_vit_b_01ec64.pth")
    network = sam.load(tmp_path / "sam_vit_b_01ec64.pth")
    small = sam.untrained(side=64)
    assert torch.equal(network.pixel_mean, small.pixel_mean) and torch.equal(network.pixel_std, small.pixel_std)
    assert not network.training
    assert all(torch.equal(tensor, vit_b[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda state: {n: t for n, t in state.items() if "iou_token" not in n}, "iou_token.weight is missing"),
        (lambda state: state | {"mask_decoder.iou_token.weight": torch.zeros(1, 99)}, "has the shape (1, 99) instead"),
        (lambda state: state | {"adapter": torch.zeros(1)}, "adapter is unexpected"),
        (lambda state: state | {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 99)}, "none of SAM's"),
        (lambda state: {"teacher": state, "student": state}, "more than once (teacher, student)"),
        (lambda state: resnet18().state_dict(), "holds 122 tensors (first conv1.weight"),
        (lambda state: [1, 2], "holds a list"),
    ],
)
def test_other_weights_are_refused_with_the_reason(vit_b, tmp_path, harm, words):
    torch.save(harm(vit_b), tmp_path / "sam_vit_b_01ec64.pth")
    refused(sam.load, tmp_path / "sam_vit_b_01ec64.pth", words, "weights fetch sam_vit_b")


def test_a_hugging_face_sam_gives_the_same_masks():
    """The reference is transformers."""
    prompts = {"hidden_size": 32, "image_size": 256, "patch_size": 16}
    vision = prompts | {
        "output_channels": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_dim": 64, "window_size": 5,
        "global_attn_indexes": [1], "num_pos_feats": 16, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    decoder = {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 48, "layer_norm_eps": 1e-5}
    torch.manual_seed(0)
    reference = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    network, predictor = sam.untrained(), SamPredictor(sam.untrained())
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    for dropped in ("prompt_encoder.shared_embedding.", "shared_image_embedding."):  # one matrix under two names
        tensors = {n: t for n, t in reference.state_dict().items() if not n.startswith(dropped)}
        network.load_state_dict(sam.from_hugging_face(tensors, network.state_dict()))
        predictor.model = network
        predictor.set_image(IMAGES["landscape"])
        points = torch.tensor([[[50.0, 60.0]], [[200.0, 90.0]]])
        _, scores, logits = predictor.predict_torch(points, torch.ones(2, 1))
        resized = torch.from_numpy(predictor.transform.apply_image(IMAGES["landscape"]).copy()).permute(2, 0, 1)
        pixels = network.preprocess(resized)[None]
        with torch.no_grad():
            output = reference.eval()(pixel_values=pixels, input_points=points[None])
        torch.testing.assert_close(logits, output.pred_masks[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(scores, output.iou_scores[0], atol=1e-3, rtol=1e-3)


@pytest.fixture
def folder(vit_b, tmp_path):
    """A Hugging Face folder with the tensors of vit_b, in half precision."""
    tensors = {sam.hugging_face_name(name): tensor.half().contiguous() for name, tensor in vit_b.items()}
    (tmp_path / "sam-vit-base").mkdir()
    save_file(tensors, tmp_path / "sam-vit-base" / "model.safetensors")
    return tmp_path / "sam-vit-base"


def test_a_hugging_face_folder_loads_in_full_precision_or_is_refused(vit_b, folder):
    for name, tensor in sam.load(folder).state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, vit_b[name]), name
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for harmed in (content[:-1000], b"<html>moved</html>", b""):
        file.write_bytes(harmed)
        refused(sam.load, folder, "weights fetch sam_vit_b")
