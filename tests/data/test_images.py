"What is held out, what is kept, and what is known of pixels."
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from kdnb.data.files import data_sets
from kdnb.data.images import averaged, canonical, decoded, fingerprint, load_images, resized, statistics
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


def drawn(n, channels, height, width, seed=0):
    "A data set of noise."
    x = torch.tensor(np.random.default_rng(seed).integers(0, 256, (3 * n, channels, height, width), dtype=np.uint8))
    return replace(DIGITS, name="noise", train_x=x[:n], val_x=x[n:2 * n], test_x=x[2 * n:], pad=4)


@pytest.mark.parametrize("height,width,side", [(32, 32, 16), (32, 32, 8), (12, 24, 4), (28, 28, 14), (6, 6, 1)])
def test_a_pixel_of_a_smaller_image_is_the_mean_of_those_it_stands_for(height, width, side):
    images = drawn(5, 3, height, width)
    found = averaged(images, side)
    for part in ("train_x", "val_x", "test_x"):
        x, small = getattr(images, part).double(), getattr(found, part)
        down, across = height // side, width // side
        for i in range(side):
            for j in range(side):
                mean = x[:, :, i * down:(i + 1) * down, j * across:(j + 1) * across].mean((2, 3))
                assert ((small[:, :, i, j] - mean).abs() <= 0.5).all()
        assert small.dtype == torch.uint8
    assert found.pad == round(4 * side / height) and found.name == f"noise at {side} x {side}" and found.train_y is images.train_y


def test_a_half_is_rounded_up_and_white_stays_white():
    images = replace(drawn(1, 1, 2, 2), train_x=torch.tensor([[[[0, 1], [0, 1]]]], dtype=torch.uint8), test_x=torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    found = averaged(images, 1)
    assert found.train_x.item() == 1 and found.test_x.item() == 255


def test_the_size_is_in_name_fingerprint_note_and_statistics():
    images = drawn(20, 3, 8, 8)
    found, other = averaged(images, 4), averaged(images, 2)
    assert len({i.fingerprint for i in (images, found, other, resized(images, 4))}) == 4
    assert "averaged from 8 x 8 to 4 x 4 pixels" in found.note and averaged(found, 2).name == "noise at 4 x 4 at 2 x 2"
    assert max(found.std) < 0.6 * min(statistics(images.train_x.numpy())[1]), "the mean of four is less noisy"
    assert averaged(images, 8) is images
    whole = replace(images, train_x=torch.cat([images.train_x, images.val_x]), val_x=images.val_x[:0], val_y=images.val_y[:0])
    assert averaged(whole, 4).fingerprint == found.fingerprint, "what is held out does not change the data set"


@pytest.mark.parametrize("side", [3, 16, 5])
def test_a_size_that_divides_nothing_is_one_sentence(side):
    with pytest.raises(InputError, match=f"size={side} does not divide the 8 x 8 pixels of digits"): averaged(DIGITS, side)


def test_a_copy_that_is_divided_otherwise_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path/"cache"))
    (tmp_path/"file").write_text("images")
    x, y = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), np.arange(6)
    source, files = replace(data_sets.build("cifar100"), counts=None, unofficial=()), {part: [tmp_path/"file"] for part in ("train", "test")}
    found = decoded(source, lambda paths, source: (x, y), files)
    told = replace(source, unofficial=("0" * 12, found.fingerprint[:12]))
    assert found.note == "" and "not the official division" in decoded(told, lambda *_: (x, y), files).note
    assert "instead of" in decoded(replace(told, counts=(7, 6)), lambda *_: (x, y), files).note, "what is missing is told first"
    assert data_sets.build("cifar100").unofficial and not data_sets.build("cifar10").unofficial


def test_images_and_what_describes_them_cannot_be_changed():
    for thing, name in ((DIGITS, "train_x"), (DIGITS.identity, "name"), (data_sets.build("digits"), "name"), (data_sets.build("cifar10"), "pad")):
        with pytest.raises(FrozenInstanceError): setattr(thing, name, 1)
