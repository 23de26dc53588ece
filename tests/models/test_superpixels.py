"""Superpixels are partitions, and overlapping masks become one; by hand and by brute force."""

import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from hw1lib.models import superpixels


@pytest.mark.parametrize("method", [superpixels.slic, superpixels.felzenszwalb])
@pytest.mark.parametrize("segments", [12, 64])
def test_superpixels_are_a_partition_of_about_as_many(method, segments):
    image = skimage.data.coffee()[100:228, 200:297]  # (128, 97)
    result = method(image, segments)
    assert (result.masks.sum(axis=0) == 1).all() and result.masks.any(axis=(1, 2)).all()
    assert abs(len(result) - segments) <= segments / 4
    assert np.isnan(result.scores).all() and len(result.scores) == len(result)
    assert np.array_equal(result.masks, method(image, segments).masks)
    assert np.array_equal(superpixels.partition(result.masks), result.masks.argmax(axis=0))
    for mask, point in zip(result.masks, result.points_xy):
        assert point == pytest.approx(np.argwhere(mask).mean(axis=0)[::-1])


def test_felzenszwalb_finds_plain_areas_and_comes_as_near_as_it_can():
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[:, 30:], image[30:, :30] = 200, 90
    assert len(superpixels.felzenszwalb(image, 3)) == 3
    assert len(superpixels.felzenszwalb(np.zeros((20, 20, 3), dtype=np.uint8), 50)) == 1
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    counts = [len(superpixels.felzenszwalb(noise, number)) for number in (10, 40, 160)]
    assert np.allclose(counts, (10, 40, 160), rtol=0.2)


@pytest.mark.parametrize("seed", range(8))
def test_partition_by_brute_force(seed):
    """A label belongs to the smallest mask at a pixel (of equals the later), or to a 4-connected part of the rest."""
    masks = np.random.default_rng(seed).random((seed % 6, 6, 6)) < 0.35
    masks = np.concatenate([masks, masks[:1]])  # so that the first one is painted over
    areas, rest, owners = masks.sum(axis=(1, 2)), scipy.ndimage.label(~masks.any(axis=0))[0], set()
    labels = superpixels.partition(masks)
    for y, x in np.ndindex(6, 6):
        covering = [(areas[m], -m) for m in range(len(masks)) if masks[m, y, x]]
        owners.add((labels[y, x], ("mask", min(covering)[1]) if covering else ("rest", rest[y, x])))
    assert sorted(label for label, _ in owners) == list(range(len({owner for _, owner in owners})))
