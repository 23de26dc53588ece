import numpy as np
import pytest
import skimage.data

from hw1lib.models import everything

# ---- what all methods share ----------------------------------------------------------------------


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
    nothing = everything.partition(np.zeros((0, 5, 7), dtype=bool))
    assert nothing.shape == (5, 7) and nothing.max() == 0


def test_partition_loses_buried_masks_and_keeps_partitions():
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0] = True
    masks[1, :2] = masks[2, 2:] = True
    assert everything.partition(masks).max() == 1  # masks[0] is painted over
    found = everything.slic(skimage.data.astronaut()[:180, 100:340], 30)
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
