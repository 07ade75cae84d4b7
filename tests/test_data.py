"CIFAR-10 is read from both layouts; what is damaged or missing is named, and nothing is taken in its place."
import numpy as np
import pytest

import kdnb.data as data
from kdnb.registry import InputError

rng = np.random.default_rng(0)
TRAIN, TEST = [(rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, 10, n)) for n in (60, 20)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_DATA", str(tmp_path/"data"))
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(data, "download_cifar10", lambda folder: "no network")
    return tmp_path/"data"


def write_parquet(root):
    for part, (x, y) in (("train", TRAIN), ("test", TEST)): data.write_shard(root/f"cifar10/{part}-00000-of-00001.parquet", x, y)


def test_both_layouts_are_one_data_set(root, monkeypatch):
    write_parquet(root)
    shards = data.load_images("auto")
    monkeypatch.setenv("KDNB_DATA", str(root/"other"))
    data.write_batches(root/"other/cifar-10-batches-py", TRAIN, TEST)
    batches = data.load_images("cifar10")
    assert shards.name == "cifar10" and shards.fingerprint == batches.fingerprint
    assert shards.train_x.equal(batches.train_x) and shards.train_y.equal(batches.train_y)
    assert sorted(shards.train_y.tolist()) == sorted(TRAIN[1].tolist())


def test_shards_keep_their_pixels(root):
    data.write_shard(root/"cifar10/train-00000-of-00001.parquet", *TRAIN, encoding="png")
    x, y = data.read_shard(root/"cifar10/train-00000-of-00001.parquet")
    assert (x == TRAIN[0]).all() and (y == TRAIN[1]).all()


def test_a_damaged_cache_is_made_again(root):
    write_parquet(root)
    before = data.load_images("cifar10")
    cache, = data.cache_folder().glob("*.safetensors")
    whole = cache.read_bytes()
    for spoilt in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        cache.write_bytes(spoilt)
        assert data.load_images("cifar10").train_x.equal(before.train_x)
        assert cache.read_bytes() == whole


def test_auto_falls_back_to_digits_and_says_so(root):
    images = data.load_images("auto")
    assert images.name == "digits" and "nothing here compares with the paper" in images.note


def test_cifar10_insists_and_names_three_ways(root):
    with pytest.raises(InputError, match="cifar-10-batches-py.*parquet shards.*download"): data.load_images("cifar10")


@pytest.mark.parametrize("spoil,says", [
    (lambda p: p.write_bytes(p.read_bytes()[:500]), "truncated"),
    (lambda p: p.write_bytes(b"not parquet"), "parquet"),
    (lambda p: data.write_shard(p, TRAIN[0], [*TRAIN[1][1:], 10]), "label 10"),
    (lambda p: data.write_shard(p, TRAIN[0], [*TRAIN[1][1:], -1]), "label -1"),
    (lambda p: data.write_shard(p, TRAIN[0][:, :, :20], TRAIN[1]), "32 x 32"),
    (lambda p: data.write_shard(p, *TRAIN, column="picture"), "picture, label"),
    (lambda p: p.rename(p.with_name("train-00000-of-00003.parquet")), "1 of 3"),
    (lambda p: p.unlink(), "train"),
])
@pytest.mark.parametrize("asked", ["auto", "cifar10"])
def test_a_wrong_shard_is_named_whatever_was_asked(root, spoil, says, asked):
    write_parquet(root)
    spoil(root/"cifar10/train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=says) as caught: data.load_images(asked)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(p.read_bytes()[:500]), lambda p: p.write_bytes(b"\x80\x02cos\nsystem\n."),
                                   lambda p: p.unlink()])
def test_a_wrong_batch_file_is_named(root, spoil):
    data.write_batches(root/"cifar-10-batches-py", TRAIN, TEST)
    spoil(root/"cifar-10-batches-py/data_batch_3")
    with pytest.raises(InputError, match="data_batch_3"): data.load_images("auto")
