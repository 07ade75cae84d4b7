"CIFAR-10 and CIFAR-100 are read from both layouts; what is damaged or missing is named, and nothing is taken in its place."
import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torchvision

import kdnb.data as data
from kdnb.registry import InputError

rng = np.random.default_rng(0)
X, X_TEST = [rng.integers(0, 256, (n, 3, 32, 32), np.uint8) for n in (60, 20)]
PAIRS = {s: {"train": (X, np.arange(60) * 7 % len(s.classes)), "test": (X_TEST, np.arange(20) * 3 % len(s.classes))}
         for s in data.SOURCES.values()}
LABELS = [(s, label) for s in PAIRS for label in s.labels]
both = pytest.mark.parametrize("source", PAIRS, ids=lambda source: source.name)


def no_network(source, folder): return "no network"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_DATA", str(tmp_path/"data"))
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(data, "download", no_network)
    return tmp_path/"data"


def write_parquet(root, source, **kinds):
    kinds = {"label": source.labels[0], **kinds}
    for part, pair in PAIRS[source].items(): data.write_shard(root/f"{source.name}/{part}-00000-of-00001.parquet", *pair, **kinds)


def write_batches(root, source): data.write_batches(root/source.folder, *PAIRS[source].values(), source)


def test_what_the_sources_say_is_what_torchvision_keeps():
    for source in PAIRS:
        theirs = getattr(torchvision.datasets, source.title.replace("-", ""))
        assert (source.folder, source.counts) == (theirs.base_folder, (50000, 10000))
        assert (list(source.train), list(source.test)) == tuple([name for name, _ in files] for files in (theirs.train_list, theirs.test_list))
    assert data.DATA == ("auto", "cifar10", "cifar100", "digits")
    assert [len(source.classes) for source in PAIRS] == [10, 100]
    assert all(source.classes == tuple(sorted(set(source.classes))) for source in PAIRS)
    assert [data.CIFAR100.classes[i] for i in (0, 1, 39, 50, 99)] == ["apple", "aquarium_fish", "keyboard", "mouse", "worm"]


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("source,label", LABELS, ids=lambda value: getattr(value, "name", value))
def test_both_layouts_are_one_data_set(root, monkeypatch, source, label, column):
    write_parquet(root, source, label=label, column=column)
    shards = data.load_images("auto", wanted=source.name)
    monkeypatch.setenv("KDNB_DATA", str(root/"other"))
    write_batches(root/"other", source)
    batches = data.load_images(source.name)
    assert shards.name == source.name and shards.classes == source.classes and (shards.pad, shards.flip) == (4, True)
    assert shards.fingerprint == batches.fingerprint
    assert shards.train_x.equal(batches.train_x) and shards.train_y.equal(batches.train_y)
    label_of = {x.tobytes(): y for x, y in zip(*PAIRS[source]["train"])}
    assert shards.train_y.tolist() == [label_of[x.numpy().tobytes()] for x in shards.train_x]
    assert shards.mean == tuple(np.round(X.mean((0, 2, 3)) / 255, 4)) and shards.std == tuple(np.round(X.std((0, 2, 3)) / 255, 4))
    assert f"This copy of {source.name} has 60 training and 20 test images instead of 50000 and 10000" in shards.note


def test_the_fine_labels_are_taken_not_the_coarse_ones(root):
    write_parquet(root, data.CIFAR100, column="img")
    (x, y), path = PAIRS[data.CIFAR100]["train"], root/"cifar100/train-00000-of-00001.parquet"
    data.write_shard(path, x, y, column="img", label="fine_label", coarse_label=list(y // 5))
    assert (data.read_shard(path, data.CIFAR100)[1] == y).all()
    batch = {b"data": x.reshape(60, -1), b"coarse_labels": (y // 5).tolist(), b"fine_labels": y.tolist(), b"batch_label": b"1 of 1", b"filenames": [b"a.png"] * 60}
    write_batches(root, data.CIFAR100)
    path = root/data.CIFAR100.folder/"train"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    assert (data.read_batch(path, data.CIFAR100)[1] == y).all()


def test_names_of_cached_files_and_fingerprints_stay(root):
    write_parquet(root, data.CIFAR10)
    digest = hashlib.sha256()
    for part in ("train", "test"):
        digest.update(hashlib.sha256((root/f"cifar10/{part}-00000-of-00001.parquet").read_bytes()).digest())
    images = data.load_images("cifar10")
    assert [p.name for p in data.cache_folder().iterdir()] == [f"cifar10-{digest.hexdigest()[:16]}.safetensors"]
    assert images.fingerprint == data.fingerprint(images.train_x, images.train_y, images.test_x, images.test_y)
    order = sorted(range(60), key=lambda i: hashlib.sha256(X[i].tobytes()).digest())
    assert (images.train_x.numpy() == X[order]).all()


@both
def test_shards_keep_their_pixels(root, source):
    write_parquet(root, source, encoding="png")
    x, y = data.read_shard(root/f"{source.name}/train-00000-of-00001.parquet", source)
    assert (x == X).all() and (y == PAIRS[source]["train"][1]).all()


@both
def test_a_damaged_cache_is_made_again(root, source):
    write_parquet(root, source)
    before = data.load_images(source.name)
    cache, = data.cache_folder().glob(f"{source.name}-*.safetensors")
    whole = cache.read_bytes()
    for spoilt in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        cache.write_bytes(spoilt)
        assert data.load_images(source.name).train_x.equal(before.train_x)
        assert cache.read_bytes() == whole


@both
def test_auto_falls_back_to_digits_and_says_so(root, source):
    write_parquet(root, *[other for other in PAIRS if other != source])  # which is there, but not wanted
    images = data.load_images("auto", wanted=source.name)
    assert images.name == "digits" and "nothing here compares with the paper" in images.note
    assert f"{source.title} was neither found" in images.note


def test_auto_is_cifar10_unless_another_is_wanted(root):
    for source in PAIRS: write_parquet(root, source)
    assert [data.load_images(*asked).name for asked in [(), ("auto",), ("auto", "cifar100"), ("cifar100",), ("cifar10", "cifar100")]] == [
        "cifar10", "cifar10", "cifar100", "cifar100", "cifar10"]
    for wrong, says in [(("cifar",), "data set 'cifar'.*'cifar10'"), (("auto", "digits"), "wanted data set 'digits'.*cifar10, cifar100")]:
        with pytest.raises(InputError, match=says): data.load_images(*wrong)


@both
def test_a_name_insists_and_names_three_ways(root, source):
    with pytest.raises(InputError, match=f"{source.title} was.*no network.*{source.folder}.*parquet shards.*, {source.labels[0]}\\).*"
                                         f"subfolder {source.name};.*download"): data.load_images(source.name)


@both
def test_torchvision_is_asked_for_the_right_one(root, monkeypatch, source):
    def fetch(folder, download): write_batches(folder, source)
    def fail(folder, download): raise OSError("unreachable")
    monkeypatch.undo()
    monkeypatch.setenv("KDNB_DATA", str(root))
    monkeypatch.setenv("KDNB_CACHE", str(root.parent/"cache"))
    for name in ("CIFAR10", "CIFAR100"): monkeypatch.setattr(torchvision.datasets, name, fail)
    with pytest.raises(InputError, match="OSError: unreachable"): data.load_images(source.name)
    monkeypatch.setattr(torchvision.datasets, source.title.replace("-", ""), fetch)
    assert data.load_images(source.name).name == source.name


def rewrite(change):
    def spoil(path, source):
        data.write_shard(path, *change(*PAIRS[source]["train"], len(source.classes)), label=source.labels[0])
    return spoil


def without_labels(path, source): data.write_shard(path, *PAIRS[source]["train"], label="coarse_label")


def without_an_image(path, source):
    images = pyarrow.array([None], pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    pyarrow.parquet.write_table(pyarrow.table({"image": images, source.labels[0]: [0]}), path)


@pytest.mark.parametrize("spoil,says", [
    (lambda p, s: p.write_bytes(p.read_bytes()[:500]), "truncated"),
    (lambda p, s: p.write_bytes(b"not parquet"), "parquet"),
    (rewrite(lambda x, y, n: (x, [*y[1:], n])), "label {n};.*from 0 to {last}"),
    (rewrite(lambda x, y, n: (x, [*y[1:], -1])), "label -1"),
    (rewrite(lambda x, y, n: (x, [*y[1:], None])), "labels of type float"),
    (rewrite(lambda x, y, n: (x[:, :, :20], y)), "32 x 32"),
    (lambda p, s: data.write_shard(p, *PAIRS[s]["train"], column="picture", label=s.labels[0]), "picture, {label}; {title} shards"),
    (without_labels, "image, coarse_label; {title} shards have .* and {label}"),
    (without_an_image, "image 0 of .* decoded"),
    (lambda p, s: p.rename(p.with_name("train-00000-of-00003.parquet")), "1 of 3"),
    (lambda p, s: p.unlink(), "train"),
])
@pytest.mark.parametrize("asked", ["auto", "by name"])
@both
def test_a_wrong_shard_is_named_whatever_was_asked(root, spoil, says, asked, source):
    write_parquet(root, source)
    spoil(root/f"{source.name}/train-00000-of-00001.parquet", source)
    says = says.format(n=len(source.classes), last=len(source.classes) - 1, label=source.labels[0], title=source.title)
    with pytest.raises(InputError, match=says) as caught: data.load_images("auto" if asked == "auto" else source.name, source.name)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


def test_one_data_set_is_not_taken_for_the_other(root):
    ten, hundred = PAIRS
    write_parquet(root, ten)
    for path in (root/"cifar10").iterdir(): path.rename(root/path.name)  # in the data folder itself
    assert data.load_images("cifar10").name == "cifar10"
    with pytest.raises(InputError, match="CIFAR-100 was not found"): data.load_images("cifar100")
    write_parquet(root, hundred)
    assert [data.load_images(name).name for name in ("cifar10", "cifar100")] == ["cifar10", "cifar100"]
    (root/"cifar100").rename(root/"cifar10")
    with pytest.raises(InputError, match="image, fine_label; CIFAR-10 shards"): data.load_images("cifar10")


@pytest.mark.parametrize("spoil,says", [
    (lambda p, s: p.write_bytes(p.read_bytes()[:500]), "truncated"),
    (lambda p, s: p.write_bytes(b"\x80\x02cos\nsystem\n."), "it asks for os.system"),
    (lambda p, s: p.write_bytes(pickle.dumps([1])), "of another kind"),
    (lambda p, s: data.write_batches(p.parent, *PAIRS[s].values(), replace(s, key="coarse_labels")), "it has no {key}"),
    (lambda p, s: p.write_bytes(pickle.dumps({s.key.encode(): [0]})), "it has no data"),
    (lambda p, s: p.write_bytes(pickle.dumps({b"data": X.reshape(60, -1), s.key.encode(): [0] * 59})), "60 images and 59 labels"),
    (lambda p, s: p.write_bytes(pickle.dumps({b"data": X[:1].reshape(1, -1), s.key.encode(): [len(s.classes)]})), "label {n};.*0 to {last}"),
    (lambda p, s: p.unlink(), "copy the whole folder"),
])
@pytest.mark.parametrize("part", ["train", "test"])
@both
def test_a_wrong_batch_file_is_named(root, spoil, says, part, source):
    write_batches(root, source)
    name = getattr(source, part)[-1]
    spoil(root/source.folder/name, source)
    says = says.format(key=source.key, n=len(source.classes), last=len(source.classes) - 1)
    with pytest.raises(InputError, match=says) as caught: data.load_images("auto", source.name)
    named = source.train[0] if "no " + source.key in says else name  # the first one read, where all are wrong
    assert str(root/source.folder) in str(caught.value) and named in str(caught.value) and "\n" not in str(caught.value)
