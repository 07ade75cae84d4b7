"Which views a training step sees, against a second derivation of each in plain Python."
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnb.data.images import load_images
from kdnb.data.views import StrongViews, Views, chance, colours, order, uniforms, windows
from plain import drawn_views, hashed, padded_views, visited

DIGITS = load_images("digits").split(validation=100, train=128, test=100)


def rgb(flip=True, pad=2, n=5, h=6, w=7):
    "A few random colour images, higher than wide."
    x = torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return replace(DIGITS, train_x=x, train_y=torch.arange(n), mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.5), pad=pad, flip=flip)


@pytest.mark.parametrize("flip,pad,count", [(False, 0, 1), (True, 0, 2), (False, 1, 9), (True, 2, 50)])
def test_every_view_is_that_crop_of_the_padded_image(flip, pad, count):
    images = rgb(flip, pad)
    views = Views(images.train_x, images)
    assert views.count == count
    for i in range(len(images.train_x)):
        wanted = padded_views(images.train_x[i].numpy(), pad, flip)
        made = views.raw(torch.full((count,), i), torch.arange(count))
        assert len(wanted) == count and (made.numpy() == np.stack(wanted)).all()


def test_normalised_views_have_the_data_sets_mean_and_deviation():
    images = rgb(pad=0, flip=False)
    made = Views(images.train_x, images).batch(0, 0, torch.arange(5))
    for channel in range(3):
        wanted = (images.train_x[:, channel].double() / 255 - images.mean[channel]) / images.std[channel]
        torch.testing.assert_close(made[:, channel].double(), wanted, atol=1e-5, rtol=1e-5)


def test_the_hash_is_that_of_whole_numbers():
    "Also of the largest ones: nothing overflows."
    index = torch.tensor([0, 1, 2, 49_999, 2**31, 2**32 - 1])
    for seed, epoch, stream in ((0, 0, 0), (1, 0, 1), (0, 1, 2), (7, 239, 1), (2, 500_003, 2)):
        assert chance(seed, epoch, index, stream).tolist() == [hashed(seed, epoch, i, stream) for i in index.tolist()]


def test_order_and_views_are_those_of_the_hash():
    views = Views(DIGITS.train_x, DIGITS)
    for seed, epoch in ((0, 0), (0, 1), (3, 7)):
        assert order(seed, epoch, 128).tolist() == visited(seed, epoch, 128)
        assert views.choose(seed, epoch, torch.arange(128)).tolist() == drawn_views(seed, epoch, range(128), 9)


@pytest.mark.parametrize("flip,pad", [(False, 1), (True, 4), (False, 0), (True, 0)])
def test_every_view_is_drawn_as_often_as_any_other(flip, pad):
    "The last one, too: in 400 drawings of each, within five standard deviations, and their squares within what chi-squared allows."
    images = rgb(flip, pad)
    views = Views(images.train_x, images)
    drawn = torch.cat([views.choose(seed, epoch, torch.arange(100 * views.count)) for seed in (0, 1) for epoch in (0, 1)])
    counts = drawn.bincount(minlength=views.count).double()
    assert len(counts) == views.count
    if views.count == 1: return
    assert (counts - 400).abs().max() < 5 * 20
    squares, free = float(((counts - 400)**2 / 400).sum()), views.count - 1
    assert free - 5 * (2 * free)**0.5 < squares < free + 5 * (2 * free)**0.5


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    orders = [order(seed, epoch, 200) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert all(o.sort().values.equal(torch.arange(200)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 9
    places = torch.stack([order(seed, 0, 50).argsort() for seed in range(400)]).double()
    assert (places.mean(0) - 24.5).abs().max() < 5 * (50**2 / 12 / 400)**0.5, "any image comes early as often as late"


def test_uniform_numbers_are_the_words_over_their_number():
    index = torch.arange(50)
    found = uniforms((4, 5), 3, index, (10, 20, 21))
    assert found.shape == (3, 2, 50) and found.dtype == torch.float32
    for i, stream in enumerate((10, 20, 21)):
        for j, seed in enumerate((4, 5)):
            wanted = torch.tensor([hashed(seed, 3, n, stream) / 2**32 for n in range(50)], dtype=torch.float64).float()
            assert found[i, j].equal(wanted)


def test_windows_are_boxes_of_the_share_aspect_and_place_that_were_drawn():
    u, h, w = torch.rand(5, 200, generator=torch.Generator().manual_seed(1)), 6, 7
    across, down = windows(u, h, w, (0.2, 0.9), True)
    for i, (a, b, c, d, e) in enumerate(u.T.double().tolist()):
        share, aspect = 0.2 + 0.7 * a, np.exp(np.log(4 / 3) * (2 * b - 1))
        wide, high = min(1, (share * aspect)**0.5), min(1, (share / aspect)**0.5)
        x, y = (1 - wide) * (2 * c - 1), (1 - high) * (2 * d - 1)
        columns = x + (-1 if e < 0.5 else 1) * wide * ((2 * np.arange(w) + 1) / w - 1)
        rows = y + high * ((2 * np.arange(h) + 1) / h - 1)
        np.testing.assert_allclose(across[i], columns, atol=1e-5)
        np.testing.assert_allclose(down[i], rows, atol=1e-5)
        assert abs(columns).max() <= 1 and abs(rows).max() <= 1
    assert windows(u, h, w, (0.2, 0.9), False)[0].diff(dim=-1).min() > 0, "nothing is mirrored unless asked"


def colour_matrix(u):
    "The change of colours that six numbers stand for, applied to RGB in [0, 255]: matrix, matrix of the mean's grey, contrast."
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    jitter = u[0] < 0.8
    bright, contrast, saturation = (0.6 + 0.8 * v if jitter else 1 for v in u[1:4])
    angle = 2 * np.pi * (0.2 * u[4] - 0.1) if jitter else 0
    if u[5] < 0.2: saturation = 0
    turn = np.array([[1, 0, 0], [0, saturation * np.cos(angle), -saturation * np.sin(angle)],
                     [0, saturation * np.sin(angle), saturation * np.cos(angle)]])
    matrix = np.linalg.inv(yiq) @ turn @ yiq * bright / 255
    return matrix, contrast, yiq[0]


def test_colours_are_brightness_contrast_saturation_and_hue():
    u = torch.rand(6, 300, generator=torch.Generator().manual_seed(2))
    matrix, grey, contrast = colours(u)
    for i, own in enumerate(u.T.double().tolist()):
        wanted, c, luma = colour_matrix(own)
        np.testing.assert_allclose(matrix[i], wanted * c, atol=1e-5)
        np.testing.assert_allclose(grey[i], luma @ wanted, atol=1e-5)
        assert abs(contrast[i] - c) < 1e-6
    assert (u[0] >= 0.8).any() and (u[5] < 0.2).any()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pair_of_strong_views_is_two_windows_with_changed_colours(channels, flip):
    "Of each image by itself: sampled, coloured, cut to [0, 1] and normalised, the first views before the second ones."
    images = rgb(flip)
    if channels == 1: images = replace(images, train_x=images.train_x[:, :1], mean=(0.3,), std=(0.4,))
    index, (h, w) = torch.tensor([4, 0, 3]), images.train_x.shape[2:]
    made = StrongViews(images.train_x, images).pair(6, 9, index)
    assert made.shape == (6, channels, h, w)
    u = uniforms((12, 13), 9, index, (10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 25)).transpose(1, 2)
    across, down = windows(u[:5], h, w, (0.2 if flip else 0.6, 1.0), flip)
    for i, n in enumerate(index.tolist()):
        for v in (0, 1):
            grid = torch.stack([across[i, v].expand(h, w), down[i, v][:, None].expand(h, w)], -1)[None]
            x = F.grid_sample(images.train_x[n][None].float(), grid, padding_mode="border", align_corners=False)[0].double()
            if channels == 3:
                matrix, contrast, luma = colour_matrix(u[5:, i, v].double().tolist())
                x = torch.einsum("ij,jhw->ihw", torch.from_numpy(matrix), x)
                mean = torch.einsum("i,ihw->hw", torch.from_numpy(luma), x).mean()
                x = (contrast * x + (1 - contrast) * mean).clamp(0, 1)
            else: x = x / 255
            wanted = (x - torch.tensor(images.mean).view(-1, 1, 1)) / torch.tensor(images.std).view(-1, 1, 1)
            torch.testing.assert_close(made[v * 3 + i].double(), wanted, atol=2e-3, rtol=1e-3)


def test_many_strong_views_are_those_of_each_image_alone():
    x = torch.randint(0, 256, (300, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    images = replace(rgb(), train_x=x)
    views, index = StrongViews(x, images), torch.arange(300)
    both = views.pair(0, 0, index)
    for i in (0, 127, 128, 255, 256, 299):
        one = views.pair(0, 0, index[i:i + 1])
        torch.testing.assert_close(torch.stack([both[i], both[300 + i]]), one, atol=1e-4, rtol=1e-4)


any_number = st.integers(0, 2**31 - 1)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(seed=any_number, epoch=any_number, index=st.lists(any_number, min_size=1, max_size=5), stream=st.integers(0, 9))
def test_any_seed_epoch_and_index_give_the_hash_of_plain_numbers(seed, epoch, index, stream):
    assert chance(seed, epoch, torch.tensor(index), stream).tolist() == [hashed(seed, epoch, i, stream) for i in index]


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(seed=any_number, epoch=any_number, index=st.lists(st.integers(0, 127), min_size=1, max_size=5))
def test_a_view_depends_on_seed_epoch_and_image_alone(seed, epoch, index):
    for views in (Views(DIGITS.train_x, DIGITS), StrongViews(DIGITS.train_x, DIGITS)):
        made = views.batch if type(views) is Views else views.pair
        whole, alone = made(seed, epoch, torch.tensor(index)), [made(seed, epoch, torch.tensor([i])) for i in index]
        parts = torch.cat(alone) if type(views) is Views else torch.cat([part[:1] for part in alone] + [part[1:] for part in alone])
        assert whole.isfinite().all() and (whole.equal(parts) if type(views) is Views else torch.allclose(whole, parts, atol=1e-4))
    assert sorted(order(seed, epoch, 16).tolist()) == list(range(16))
