"What is held out, what is kept, and what is known of pixels."
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from kdnb.data.files import data_sets
from kdnb.data.images import canonical, fingerprint, load_images, resized, statistics
from kdnb.registry import InputError

DIGITS = load_images("digits")
N, TEST = len(DIGITS.train_x), len(DIGITS.test_x)


def test_the_last_are_held_out_and_the_first_are_kept():
    found = DIGITS.split(200, 1000, 300)
    assert found.train_x.equal(DIGITS.train_x[:1000]) and found.train_y.equal(DIGITS.train_y[:1000])
    assert found.val_x.equal(DIGITS.train_x[N - 200:]) and found.val_y.equal(DIGITS.train_y[N - 200:])
    assert found.test_x.equal(DIGITS.test_x[:300]) and found.test_y.equal(DIGITS.test_y[:300])
    assert found.identity.train == 1000 and found.identity.validation == 200 and found.identity.test == 300
    assert DIGITS.split(200, 500).val_x.equal(found.val_x), "always the same images"


def test_by_default_all_that_are_left_are_kept():
    found = DIGITS.split(200)
    assert len(found.train_x) == N - 200 and len(found.test_x) == TEST and len(DIGITS.split(0).val_x) == 0 and len(DIGITS.split(0).train_x) == N
    assert len(DIGITS.split(N - 1).train_x) == 1 and len(DIGITS.split(200, N - 200).train_x) == N - 200 and len(DIGITS.split(1, 1, TEST).test_x) == TEST


@pytest.mark.parametrize("sizes", [(-1,), (N,), (N + 1,), (200, N - 199), (200, 1000, TEST + 1)])
def test_more_than_there_are_is_refused(sizes):
    with pytest.raises(InputError, match=f"digits has {N} training and {TEST} test images: too few"): DIGITS.split(*sizes)
    with pytest.raises(InputError, match="and 0 test images: too few"): replace(DIGITS, test_x=DIGITS.test_x[:0]).split(10)


def test_no_image_is_in_two_parts():
    found = DIGITS.split(200, 1000, 300)
    parts = [{x.numpy().tobytes() for x in part} for part in (found.train_x, found.val_x, found.test_x)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


@pytest.mark.parametrize("sizes", [(999,), (1000,), (1001,), (300, 1700)])
def test_statistics_are_those_of_all_pixels(sizes):
    arrays = [np.random.default_rng(n).integers(0, 256, (n, 2, 3, 2), dtype=np.uint8) for n in sizes]
    for x in arrays: x[:, 1] //= 3
    mean, std = statistics(*arrays)
    whole = np.concatenate(arrays).astype(float) / 255
    np.testing.assert_allclose(mean, whole.mean((0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(std, whole.std((0, 2, 3)), atol=5.1e-5)
    assert all(round(v, 4) == v for v in (*mean, *std))


def test_the_largest_pixel_counts():
    x = np.full((1, 1, 2, 2), 255, np.uint8)
    assert statistics(x)[0] == (1.0,)


def test_fingerprints_tell_shape_type_and_bytes_apart():
    marks = [fingerprint(a) for a in (np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((2, 3), np.float32), np.ones((2, 3)))]
    assert len(set(marks)) == 4 and fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(2)) and len(marks[0]) == 64


def test_the_order_of_files_is_no_matter():
    x, y = DIGITS.train_x[:50].numpy(), DIGITS.train_y[:50].numpy()
    mixed = np.random.default_rng(0).permutation(50)
    (a, b), (c, d) = canonical(x, y), canonical(x[mixed], y[mixed])
    assert (a == c).all() and (b == d).all() and sorted(b) == sorted(y)


def test_resizing_to_the_same_side_changes_nothing_and_padding_goes_along():
    assert resized(DIGITS, 8) is DIGITS
    for side, pad in ((16, 2), (4, 0), (12, 2)):
        found = resized(DIGITS.split(10, 20, 10), side)
        assert found.shape == (1, side, side) and found.pad == pad and found.fingerprint != DIGITS.fingerprint
    wide = replace(DIGITS, **{part: torch.zeros(3, 1, 8, 12, dtype=torch.uint8) for part in ("train_x", "val_x", "test_x")})
    assert resized(wide, 8).shape == (1, 8, 8)
    with pytest.raises(InputError, match="side"): resized(DIGITS, 0)


def test_images_and_what_describes_them_cannot_be_changed():
    for thing, name in ((DIGITS, "train_x"), (DIGITS.identity, "name"), (data_sets.build("digits"), "name"), (data_sets.build("cifar10"), "pad")):
        with pytest.raises(FrozenInstanceError): setattr(thing, name, 1)
