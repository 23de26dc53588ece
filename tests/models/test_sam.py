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
from tests.models.conftest import numbered, prefixed, refused

IMAGE = np.ascontiguousarray(skimage.data.astronaut()[:90, 100:220])
ALL = {"pred_iou_thresh": 0, "stability_score_thresh": 0}


@pytest.fixture
def opencv(monkeypatch):
    """Stand in for the one function of OpenCV that Meta's package calls."""

    def components(mask, connectivity):
        regions, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        return count + 1, regions, np.bincount(regions.ravel(), minlength=count + 1)[:, None], None

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(connectedComponentsWithStats=components))


@pytest.fixture(scope="module")
def sparse():
    """A random SAM whose masks take about 3 % of the image, so that not all of their boxes are alike."""
    network = sam.untrained(1, side=128)
    predictor = SamPredictor(network)
    predictor.set_image(IMAGE)
    logits, _, _ = predictor.predict_torch(120 * torch.rand(16, 1, 2), torch.ones(16, 1), return_logits=True)
    with torch.no_grad():
        for index, mlp in enumerate(network.mask_decoder.output_hypernetworks_mlps[1:]):
            # This number is multiplied by the constant channel of the upscaled embedding, GELU(1) = 0.8413.
            mlp.layers[-1].bias[0] -= float(np.percentile(logits[:, index], 97)) / 0.8413
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "area", "box", "crop"), [(1, 0, 0.97, 0.9), (1, 10, 0.97, 0.95), (0, 30, 0.85, 0.95)]
)
def test_masks_equal_metas(opencv, sparse, layers, area, box, crop):
    """With the settings of every filter, crops, and small regions, which Meta cleans with OpenCV."""
    settings = {
        "points_per_side": 6, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.5, "stability_score_offset": 0.9,
        "box_nms_thresh": box, "crop_nms_thresh": crop, "crop_n_layers": layers, "crop_overlap_ratio": 0.3,
        "crop_n_points_downscale_factor": 2, "min_mask_region_area": area,
    }  # fmt: skip
    records = SamAutomaticMaskGenerator(sparse, **settings).generate(IMAGE)
    masks = sam.sam_everything(IMAGE, sparse, **settings)
    assert len(records) == len(masks) >= 3
    assert np.array_equal(masks.masks, [record["segmentation"] for record in records])
    assert np.array_equal(masks.points_xy, [record["point_coords"][0] for record in records])
    assert masks.scores == pytest.approx([record["predicted_iou"] for record in records])
    assert masks.stability == pytest.approx([record["stability_score"] for record in records])
    assert len(masks.grid_xy) == 6**2 + layers * 4 * 3**2
    assert {tuple(p) for p in masks.grid_xy.round(3)} >= {tuple(p) for p in masks.points_xy.round(3)}


@pytest.mark.parametrize("refusing", [{"pred_iou_thresh": 9.0}, {"stability_score_thresh": 2.0}])
def test_no_mask_at_all_is_no_error(refusing):
    settings = {"points_per_side": 2, "crop_n_layers": 1, "crop_n_points_downscale_factor": 3}
    masks = sam.sam_everything(IMAGE, sam.untrained(side=64), min_mask_region_area=5, **settings, **refusing)
    assert masks.masks.shape == (0, *IMAGE.shape[:2]) and masks.points_xy.shape == (0, 2)
    assert len(masks.grid_xy) == 4 + 4


def test_an_untrained_sam_gives_diverse_and_reproducible_masks():
    settings = ALL | {"points_per_side": 4, "box_nms_thresh": 1.0}
    first, again, other = (sam.sam_everything(IMAGE, sam.untrained(seed, 128), **settings) for seed in (5, 5, 6))
    assert np.array_equal(first.masks, again.masks)
    assert len(other) != len(first) or (other.masks != first.masks).any()
    assert np.isfinite(first.scores).all() and np.median(first.scores) > 0
    assert len(np.unique(first.masks.reshape(len(first), -1), axis=0)) > 15


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
    return numbered(sam_model_registry["vit_b"])


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": prefixed("module.")(state)}])
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
        (lambda state: state | {"adapter": torch.zeros(1)}, "adapter is unexpected"),
        (lambda state: state | {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 99)}, "pos_embed has the shape (1, "),
        (lambda state: {"teacher": state, "student": state}, "more than once (teacher, student)"),
        (lambda state: numbered(resnet18), "holds 122 tensors (first conv1.weight"),
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
    network = sam.untrained()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    points = torch.tensor([[[50.0, 60.0]], [[200.0, 90.0]]])
    for dropped in ("prompt_encoder.shared_embedding.", "shared_image_embedding."):  # one matrix under two names
        tensors = {n: t for n, t in reference.state_dict().items() if not n.startswith(dropped)}
        network.load_state_dict(sam.from_hugging_face(tensors, network.state_dict()))
    predictor = SamPredictor(network)
    predictor.set_image(IMAGE)
    _, scores, logits = predictor.predict_torch(points, torch.ones(2, 1))
    resized = torch.from_numpy(predictor.transform.apply_image(IMAGE).copy()).permute(2, 0, 1)
    with torch.no_grad():
        output = reference.eval()(pixel_values=network.preprocess(resized)[None], input_points=points[None])
    torch.testing.assert_close(logits, output.pred_masks[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(scores, output.iou_scores[0], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_hugging_face_folder_loads_in_full_precision_or_is_refused(vit_b, tmp_path):
    """Its tensors are those of vit_b in half precision."""
    file = tmp_path / "sam-vit-base" / "model.safetensors"
    file.parent.mkdir()
    save_file({sam.hugging_face_name(name): tensor.half().contiguous() for name, tensor in vit_b.items()}, file)
    for name, tensor in sam.load(file.parent).state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, vit_b[name]), name
    content = file.read_bytes()
    for harmed in (content[:-1000], b"<html>moved</html>", b""):
        file.write_bytes(harmed)
        refused(sam.load, file.parent, "weights fetch sam_vit_b")
