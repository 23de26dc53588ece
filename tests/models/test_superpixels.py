"""Masks of the classical segmenters are partitions, and overlapping masks become one; by hand and by brute force."""

import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from hw1lib.models import superpixels


def test_mask_boxes_by_hand_and_by_brute_force():
    masks = np.random.default_rng(0).random((40, 7, 9)) < 0.08
    masks[0], masks[1] = False, True
    boxes = superpixels.mask_boxes(masks)
    assert boxes[:2].tolist() == [[0, 0, 0, 0], [0, 0, 8, 6]]
    for mask, box in zip(masks, boxes):
        y, x = np.nonzero(mask)
        assert not mask.any() or box.tolist() == [x.min(), y.min(), x.max(), y.max()]


# ---- the classical segmenters --------------------------------------------------------------------


@pytest.mark.parametrize("method", [superpixels.slic, superpixels.felzenszwalb])
@pytest.mark.parametrize("segments", [12, 64])
def test_classical_masks_are_a_partition_of_about_as_many(method, segments):
    image = skimage.data.coffee()[100:228, 200:297]  # (128, 97)
    found = method(image, segments)
    assert (found.masks.sum(axis=0) == 1).all() and found.areas.min() > 0
    assert abs(len(found) - segments) <= segments / 4
    assert np.isnan(found.scores).all() and len(found.scores) == len(found) and found.funnel == {}
    assert np.array_equal(found.masks, method(image, segments).masks)
    assert np.array_equal(superpixels.partition(found.masks), found.masks.argmax(axis=0))
    for mask, point in zip(found.masks, found.points_xy):
        assert point == pytest.approx(np.argwhere(mask).mean(axis=0)[::-1])


def test_felzenszwalb_finds_plain_areas_and_comes_as_near_as_it_can():
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[:, 30:], image[30:, :30] = 200, 90
    assert len(superpixels.felzenszwalb(image, 3)) == 3
    assert len(superpixels.felzenszwalb(np.zeros((20, 20, 3), dtype=np.uint8), 50)) == 1
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.allclose([len(superpixels.felzenszwalb(noise, wish)) for wish in (10, 40, 160)], (10, 40, 160), rtol=0.2)


# ---- partition -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_partition_by_brute_force(seed):
    """Each label has one owner: the smallest mask there, of equals the later, or a 4-connected part of the rest."""
    masks = np.random.default_rng(seed).random((seed % 6, 6, 6)) < 0.35
    masks = np.concatenate([masks, masks[:1]])  # so that the first one is painted over
    areas, rest, owners = masks.sum(axis=(1, 2)), scipy.ndimage.label(~masks.any(axis=0))[0], set()
    labels = superpixels.partition(masks)
    for y, x in np.ndindex(6, 6):
        covering = [(areas[m], -m) for m in range(len(masks)) if masks[m, y, x]]
        owners.add((labels[y, x], ("mask", min(covering)[1]) if covering else ("rest", rest[y, x])))
    assert sorted(label for label, _ in owners) == list(range(len({owner for _, owner in owners})))
