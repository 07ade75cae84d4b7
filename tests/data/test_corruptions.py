"A corruption is a function of seed and image alone; it touches what it was asked to touch, by the amount that it says."
import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import kdnb.data.corruptions as corruptions
import kdnb.data.images as data
from kdnb.data.corruptions import corrupted, occluded, patch_side, pixel_words, texture, textured
from kdnb.registry import InputError

generator = torch.Generator().manual_seed(0)


def noise(n, channels, height, width, low=0): return torch.randint(low, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def images(): return replace(data.resized(data.load_images("digits"), 12), note="A note.")


shapes = pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 96, 96), (3, 20, 30)], ids=str)


@pytest.mark.parametrize("change", [occluded, textured], ids=["occluded", "textured"])
@shapes
def test_an_image_is_changed_by_itself(change, shape):
    x, index = noise(9, *shape), torch.arange(9)
    before, whole = x.clone(), change(x, index, 3)
    assert x.equal(before) and whole.dtype == torch.uint8
    order = torch.tensor([4, 0, 8, 2])
    assert change(x[order], index[order], 3).equal(whole[order])
    assert torch.cat([change(x[i:i + 1], index[i:i + 1], 3) for i in range(9)]).equal(whole)
    assert not change(x, index, 4).equal(whole) and not change(x, index + 1, 3).equal(whole)
    assert change(x[:0], index[:0], 3).shape == (0, *whole.shape[1:])


@pytest.mark.parametrize("share", [0.04, 0.25, 0.5, 1.0])
@shapes
def test_one_square_of_the_right_size_is_hidden(shape, share):
    channels, height, width = shape
    if math.sqrt(share * height * width) > min(height, width) + 0.5:
        with pytest.raises(InputError, match=f"share={share}: no square"): patch_side(height, width, share)
        return
    x = noise(40, *shape, low=10)
    colour = (1, 2, 3)[:channels]
    new, side = occluded(x, torch.arange(40), 0, share, colour), patch_side(height, width, share)
    assert abs(side - math.sqrt(share * height * width)) <= 0.5
    hidden = new != x
    assert hidden.any(1).equal(hidden.all(1))
    for image, patch in zip(new, hidden[:, 0]):
        rows, columns = patch.any(1).nonzero().flatten(), patch.any(0).nonzero().flatten()
        assert patch.sum() == side**2 and len(rows) == len(columns) == side
        assert rows[-1] - rows[0] == columns[-1] - columns[0] == side - 1
        assert image[:, patch].T.unique(dim=0).tolist() == [list(colour)]
    assert occluded(x, torch.arange(40), 0, share)[hidden].eq(128).all()


def test_every_place_is_as_likely():
    starts = torch.stack([occluded(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8).expand(5000, -1, -1, -1), torch.arange(5000), seed)[:, 0].argmin(-1).amax(1)
                          for seed in range(4)])  # the columns where the patches begin
    counts = starts.flatten().bincount()
    assert len(counts) == 5 and ((counts - 4000)**2 / 4000).sum() < 18.5  # the 99.9 % point of chi-square with 4 degrees of freedom
    assert torch.corrcoef(starts.float()).sub(torch.eye(4)).abs().max() < 0.05


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threshold", [1, 32, 255])
def test_objects_are_kept_and_black_is_replaced(threshold, channels):
    x, index = noise(20, channels, 16, 16) * (noise(20, 1, 16, 16) > 128), torch.arange(20)
    new, behind = textured(x, index, 0, threshold), texture(index, 0, 16, 16)
    grey, bright = x.expand(-1, 3, -1, -1), x.amax(1, keepdim=True).expand(-1, 3, -1, -1)
    assert new.shape == grey.shape and new[bright >= threshold].equal(grey[bright >= threshold])
    assert new[bright == 0].equal(behind.byte()[bright == 0]) and (bright == 0).float().mean() > 0.4
    mixed = (grey.double() * bright + behind.double() * (threshold - bright.double())) / threshold
    between = bright < threshold
    assert (new.double() - mixed)[between].abs().max() <= 0.5 + 1e-9


def test_textures_differ_in_colour_direction_and_period_and_fill_the_range():
    many = texture(torch.arange(300), 0, 64, 64)
    assert many.min() >= 0 and many.max() <= 255 and many.shape == (300, 3, 64, 64)
    assert many.float().std((2, 3)).mean() > 20 and many.float().mean((2, 3)).std(0).min() > 15
    spectrum = torch.fft.fft2(many.float() - many.float().mean((2, 3), keepdim=True)).abs().square().sum(1)
    row, column = torch.fft.fftfreq(64)[:, None], torch.fft.fftfreq(64)
    strongest = spectrum.flatten(1).argmax(1)
    frequency, angle = (row**2 + column**2).sqrt().flatten()[strongest], torch.atan2(row + 0 * column, column + 0 * row).flatten()[strongest] % math.pi
    assert frequency.min() > 1 / 8 - 0.03 and frequency.max() < 1 / 3 + 0.03 and frequency.std() > 0.04
    assert angle.div(math.pi / 6).long().clamp(max=5).bincount(minlength=6).min() > 20
    assert texture(torch.arange(3), 1, 64, 64).ne(many[:3]).any((1, 2, 3)).all()


def mixed(x):
    for multiplier, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)): x = (x ^ x >> shift) * multiplier % 2**32
    return x ^ x >> 16


def draw(seed, index, stream, low, high):
    word = 0
    for part in (seed, 0, stream): word = mixed((word + part * 0x9E3779B9 + 0x7F4A7C15) % 2**32)
    return low + (mixed(word ^ mixed(index)) * (high - low + 1) >> 32)


def plain_pixel(seed, index, row, column):
    "A pixel of the texture in Python's own whole numbers."
    sine = [round(127 * math.sin(math.pi * i / 128)) for i in range(256)]
    colour = [draw(seed, index, 49 + c, 64, 160) for c in range(3)]
    for i in range(3):
        angle, phase, speed = draw(seed, index, 40 + i, 0, 255), draw(seed, index, 43 + i, 0, 65535), draw(seed, index, 46 + i, 8192, 21845)
        wave = sine[(phase + speed * sine[angle] // 127 * row + speed * sine[(angle + 64) % 256] // 127 * column) // 256 % 256]
        colour = [value + draw(seed, index, 52 + 3 * i + c, -56, 56) * wave // 127 for c, value in enumerate(colour)]
    return [min(max(value, 0), 255) for value in colour]


def test_the_numbers_are_those_of_plain_whole_numbers():
    "Nothing is rounded, so every machine and every device makes the same pictures."
    index = torch.tensor([0, 1, 77, 2**32 - 1])
    pictures = texture(index, 7, 96, 40)
    places = occluded(torch.zeros(4, 1, 96, 40, dtype=torch.uint8), index, 7, 0.1)[:, 0].flatten(1).argmax(1)
    for i, number in enumerate(index.tolist()):
        for row, column in ((0, 0), (95, 39), (13, 28), (50, 1)):
            assert pictures[i, :, row, column].tolist() == plain_pixel(7, number, row, column)
        assert places[i] == 40 * draw(7, number, 30, 0, 96 - 20) + draw(7, number, 31, 0, 40 - 20)
    x = noise(3, 2, 4, 5)
    assert pixel_words(x).tolist() == [int(hashlib.sha256(bytes(image.flatten().tolist())).hexdigest()[:8], 16) for image in x]


@pytest.mark.parametrize("part,touched", [("train", ["train_x", "val_x"]), ("test", ["test_x"]), ("both", ["train_x", "val_x", "test_x"])])
@pytest.mark.parametrize("kind", ["occluded", "textured"])
def test_only_the_part_that_was_asked_for_is_touched(images, kind, part, touched):
    images = images.split(200)
    new = corrupted(images, kind, part, 5)
    before = data.coloured(images) if kind == "textured" else images
    assert new.shape == before.shape and new.name == images.name and new.pad == images.pad
    for name in data.PARTS:
        old, x = getattr(before, name), getattr(new, name)
        assert len(x) == len(old) and (x != old).any((1, 2, 3)).all() == (name in touched)
        if name not in touched: assert x.equal(old)
        else: assert x.equal(corruptions.KINDS[kind](old, pixel_words(old), 5, **({"colour": (round(255 * images.mean[0]),)} if kind == "occluded" else {})))
    for name in ("train_y", "val_y", "test_y"): assert getattr(new, name) is getattr(images, name)
    pixels = torch.cat([new.train_x, new.val_x]).double() / 255
    assert new.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert new.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    assert new.note.startswith("A note. ") and f"{kind} (" in new.note and "seed=5" in new.note and new.note.endswith("the paper has none.")
    assert {"train": "training images", "test": "The test images", "both": "training and test images"}[part] in new.note


def test_splitting_before_or_after_is_the_same(images):
    for kind in ("occluded", "textured"):
        before, after = corrupted(images.split(200), kind), corrupted(images, kind).split(200)
        assert before.fingerprint == after.fingerprint and before.mean == after.mean
        assert all(getattr(before, name).equal(getattr(after, name)) for name in data.PARTS)
        few = corrupted(images.split(200, train=50, test=20), kind)
        assert few.test_x.equal(after.test_x[:20]) and few.val_x.equal(after.val_x) and few.fingerprint != after.fingerprint


def test_fingerprints_follow_from_what_was_done(images):
    def mark(*asked, **options): return corrupted(images, *asked, **options).fingerprint
    different = [images.fingerprint, mark("occluded"), mark("occluded", "train"), mark("occluded", "test"), mark("occluded", seed=1),
                 mark("occluded", share=0.3), mark("occluded", colour=(0,)), mark("textured"), mark("textured", threshold=16), mark("textured", "test"),
                 corrupted(data.resized(images, 13), "occluded").fingerprint, corrupted(corrupted(images, "occluded"), "textured").fingerprint]
    assert len(set(different)) == len(different)
    assert mark("occluded", "both", 0, share=0.25) == mark("occluded") and mark("textured", threshold=32) == mark("textured")


def test_another_process_makes_the_same_data_set(images):
    code = "from kdnb.data import images as data, corruptions as c; print(c.corrupted(data.resized(data.load_images('digits'), 12), 'textured', 'test', 3).fingerprint)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600, env=os.environ | {"PYTHONHASHSEED": "17"})
    assert out.stdout.strip() == corrupted(images, "textured", "test", 3).fingerprint


def test_none_is_the_same_object(images):
    for part in ("train", "test", "both"): assert corrupted(images, "none", part, 4) is images


@pytest.mark.parametrize("asked,options,says", [
    (("occlusion",), {}, "unknown corruption 'occlusion'. Known: none, occluded, textured"),
    ((None,), {}, "unknown corruption None"),
    (("occluded", "val"), {}, "part='val' is not one of 'train', 'test', 'both'"),
    (("none", "val"), {}, "part='val'"),
    (("occluded", "both", -1), {}, "seed=-1"),
    (("occluded", "both", 0.5), {}, "seed=0.5"),
    (("none", "both", "a"), {}, "seed='a'"),
    (("occluded",), {"share": 0}, "share=0 is not a number above 0"),
    (("occluded",), {"share": 1.2}, "share=1.2: no square"),
    (("occluded",), {"share": 1e-4}, "share=0.0001: no square"),
    (("occluded",), {"share": "half"}, "share='half'"),
    (("occluded",), {"colour": (1, 2)}, r"colour=\(1, 2\) is not 1 whole numbers"),
    (("occluded",), {"colour": (300,)}, r"colour=\(300,\)"),
    (("occluded",), {"threshold": 3}, "option of the corruption 'occluded': 'threshold'.*Known: colour, share"),
    (("textured",), {"share": 0.2}, "option of the corruption 'textured': 'share'.*Known: threshold"),
    (("textured",), {"threshold": 0}, "threshold=0"),
    (("textured",), {"threshold": 256}, "threshold=256 is more than 255"),
    (("none",), {"share": 0.2}, "'none' has no option 'share'"),
])
def test_wrong_words_are_refused_in_one_sentence(images, asked, options, says):
    with pytest.raises(InputError, match=says) as caught: corrupted(images, *asked, **options)
    assert "\n" not in str(caught.value)
