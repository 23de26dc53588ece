"""Masks of the classical segmenters are partitions, and overlapping masks become one; by hand and by brute force."""

import numpy as np
import pytest
import skimage.data

from hw1lib.models import everything


def test_mask_boxes_by_hand_and_by_brute_force():
    masks = np.random.default_rng(0).random((40, 7, 9)) < 0.08
    masks[0], masks[1] = False, True
    boxes = everything.mask_boxes(masks)
    assert boxes[:2].tolist() == [[0, 0, 0, 0], [0, 0, 8, 6]]
    for mask, box in zip(masks, boxes):
        y, x = np.nonzero(mask)
        assert not mask.any() or box.tolist() == [x.min(), y.min(), x.max(), y.max()]


# ---- the classical segmenters --------------------------------------------------------------------


@pytest.mark.parametrize("method", [everything.slic, everything.felzenszwalb])
@pytest.mark.parametrize("segments", [12, 64])
def test_classical_masks_are_a_partition_of_about_as_many(method, segments):
    image = skimage.data.coffee()[100:228, 200:297]  # (128, 97)
    found = method(image, segments)
    assert (found.masks.sum(axis=0) == 1).all() and found.areas.min() > 0
    assert abs(len(found) - segments) <= segments / 4
    assert np.isnan(found.scores).all() and len(found.scores) == len(found) and found.funnel == {}
    assert np.array_equal(found.masks, method(image, segments).masks)
    assert np.array_equal(everything.partition(found.masks), found.masks.argmax(axis=0))
    for mask, point in zip(found.masks, found.points_xy):
        assert point == pytest.approx(np.argwhere(mask).mean(axis=0)[::-1])


def test_felzenszwalb_finds_plain_areas_and_comes_as_near_as_it_can():
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[:, 30:], image[30:, :30] = 200, 90
    assert len(everything.felzenszwalb(image, 3)) == 3
    assert len(everything.felzenszwalb(np.zeros((20, 20, 3), dtype=np.uint8), 50)) == 1
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.allclose([len(everything.felzenszwalb(noise, wish)) for wish in (10, 40, 160)], (10, 40, 160), rtol=0.2)


# ---- partition -----------------------------------------------------------------------------------


def test_larger_masks_are_painted_first_and_of_equals_the_later_lies_on_top():
    masks = np.zeros((4, 6, 8), dtype=bool)
    masks[0, 2:4, 2:4] = True  # small, lies on top although it comes first
    masks[1, 1:5, 1:5] = True
    masks[2, 1:3, 1:3] = True  # of the size of masks[0], and later: on top of it
    masks[3, :, 7] = True
    labels = everything.partition(masks)
    small, large, later, edge, rest = labels[3, 3], labels[4, 4], labels[2, 2], labels[0, 7], labels[0, 0]
    assert sorted((small, large, later, edge, rest)) == list(range(5)) == np.unique(labels).tolist()
    assert (labels[1, 1], labels[5, 7], labels[5, 6]) == (later, edge, rest)  # one connected rest
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0] = masks[1, :2] = masks[2, 2:] = True
    assert everything.partition(masks).max() == 1  # masks[0] is painted over


@pytest.mark.parametrize("seed", range(20))
def test_partition_by_brute_force(seed):
    masks = np.random.default_rng(seed).random((5, 6, 6)) < 0.35
    labels, areas, top = everything.partition(masks), masks.sum(axis=(1, 2)), {}
    for y, x in np.ndindex(6, 6):
        covering = [(areas[m], -m) for m in range(5) if masks[m, y, x]]
        top.setdefault(labels[y, x], set()).add(-min(covering)[1] if covering else "rest")
    assert sorted(top) == list(range(len(top))) and all(len(owners) == 1 for owners in top.values())
    owned = [owner for owners in top.values() for owner in owners if owner != "rest"]
    assert len(owned) == len(set(owned))
