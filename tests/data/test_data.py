"Every data set is read from its own files and from shards; what is damaged or missing is named, and nothing is taken in its place."
import gzip
import hashlib
import io
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import torchvision
from PIL import Image

import kdnb.data.files as files
import kdnb.data.images as data
import made
from kdnb.data.files import data_sets
from kdnb.data.pickles import read_array, read_pickle
from kdnb.data.sets.cifar import read_batch
from kdnb.registry import InputError

CIFAR10, CIFAR100, STL10, FASHION_MNIST, TINY_IMAGENET = SOURCES = [
    data_sets.build(name) for name in ("cifar10", "cifar100", "stl10", "fashion_mnist", "tiny_imagenet")]
rng = np.random.default_rng(0)
N = {CIFAR10: (60, 20), CIFAR100: (60, 20), STL10: (9, 5), FASHION_MNIST: (30, 10), TINY_IMAGENET: (12, 6)}


def photos(n, shape):
    "Smooth random images, which survive JPEG."
    small = torch.rand(n, shape[0], 4, 4, generator=torch.Generator().manual_seed(n))
    return (torch.nn.functional.interpolate(small, shape[1:], mode="bilinear") * 255).byte().numpy()


def pairs(source):
    make = photos if source is TINY_IMAGENET else lambda n, shape: rng.integers(0, 256, (n, *shape), np.uint8)
    x, x_test = (make(n, source.shape) for n in N[source])
    return (x, np.arange(len(x)) * 7 % len(source.classes)), (x_test, np.arange(len(x_test)) * 3 % len(source.classes))


PAIRS = {source: pairs(source) for source in N}
every = pytest.mark.parametrize("source", N, ids=lambda source: source.name)
cifar = pytest.mark.parametrize("source", [CIFAR10, CIFAR100], ids=lambda source: source.name)


def no_network(source, folder): return "no network"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_DATA", str(tmp_path/"data"))
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(data, "download", no_network)
    return tmp_path/"data"


def write_shards(root, source, **kinds): made.write_shards(root, source, *PAIRS[source], **kinds)


def write_own(root, source): made.write_own(root, source, *PAIRS[source])


def shard(root, source): return root/source.name/"train-00000-of-00001.parquet"


def test_what_the_sources_say_is_what_torchvision_keeps():
    assert set(data.data_names()) >= {"auto", "digits", *(source.name for source in SOURCES)}
    for source in (CIFAR10, CIFAR100, STL10):
        theirs = getattr(torchvision.datasets, source.torchvision)
        assert source.folder == theirs.base_folder
        lists = [[name for name, _ in files if "unlabeled" not in name] for files in (theirs.train_list, theirs.test_list)]
        assert [list(source.train), list(source.test)] == lists
    theirs = getattr(torchvision.datasets, FASHION_MNIST.torchvision)
    assert theirs.classes == list(FASHION_MNIST.classes) and FASHION_MNIST.folder == f"{theirs.__name__}/raw"
    assert [name.removesuffix(".gz") for name, _ in theirs.resources] == list(FASHION_MNIST.train + FASHION_MNIST.test)
    assert [len(source.classes) for source in N] == [10, 100, 10, 10, 200]
    assert all(source.classes == tuple(sorted(set(source.classes))) for source in (CIFAR10, CIFAR100, STL10))
    assert [CIFAR100.classes[i] for i in (0, 1, 39, 50, 99)] == ["apple", "aquarium_fish", "keyboard", "mouse", "worm"]


RENAMED = """n02666196 n02666347 n02190166 n03373237 n04465501 n04465666 n04597913 n04598010 n04067472 n07056680 n01855672 n07646821 n03250847 n07647870
n07579787 n07657664 n02206856 n07975909 n02730930 n08496334 n03976657 n08620881 n02085620 n08742578 n02906734 n12520864 n07734744 n13001041
n03804744 n13652335 n02999410 n13652994 n01945685 n13719102 n07747607 n14991210""".split()  # in the archive, in the parquet copy


def test_tiny_imagenets_labels_are_those_of_its_parquet_copy():
    copys = dict(zip(RENAMED[::2], RENAMED[1::2]))
    assert len(copys) == 18 and set(copys) < set(TINY_IMAGENET.classes)
    theirs = [copys.get(name, name) for name in TINY_IMAGENET.classes]
    assert theirs == sorted(set(theirs)) and len(theirs) == 200


def same(a, b):
    return a.fingerprint == b.fingerprint and all(getattr(a, name).equal(getattr(b, name)) for name in ("train_x", "train_y", "test_x", "test_y"))


@pytest.mark.parametrize("column", ["image", "img"])
@every
def test_both_layouts_are_one_data_set(root, monkeypatch, source, column):
    write_own(root/"other", source)
    monkeypatch.setenv("KDNB_DATA", str(root/"other"))
    own = data.load_images(source.name)
    read = [(x.numpy(), y.numpy()) for x, y in ((own.train_x, own.train_y), (own.test_x, own.test_y))]
    monkeypatch.setenv("KDNB_DATA", str(root))
    for label in source.labels:
        shuffled = [(x[::-1].copy(), y[::-1]) for x, y in read]
        made.write_shards(root, source, *shuffled, label=label, column=column)
        shards = data.load_images("auto", wanted=source.name)
        assert same(shards, own) and shards.mean == own.mean and shards.classes == own.classes == source.classes
        shutil.rmtree(root/source.name)
    assert (own.name, own.shape, own.pad, own.flip) == (source.name, source.shape, source.pad, True)
    (n, n_test), counts = N[source], source.counts
    assert f"This copy of {source.name} has {n} training and {n_test} test images instead of {counts[0]} and {counts[1]}" in own.note


@every
def test_pixels_and_labels_are_those_written(root, source):
    write_own(root, source)
    images, (x, y) = data.load_images(source.name), PAIRS[source][0]
    if source is TINY_IMAGENET:  # JPEG moves pixels a little: each is nearest to the one it was written from
        near = [int(np.abs(x.astype(int) - image.numpy()).mean((1, 2, 3)).argmin()) for image in images.train_x]
        assert sorted(near) == list(range(len(x))) and images.train_y.tolist() == y[near].tolist()
        assert np.abs(x[near].astype(int) - images.train_x.numpy()).mean() < 2
    else:
        label_of = {image.tobytes(): label for image, label in zip(x, y)}
        assert images.train_y.tolist() == [label_of[image.numpy().tobytes()] for image in images.train_x]
        assert images.mean == tuple(np.round(x.mean((0, 2, 3)) / 255, 4)) and images.std == tuple(np.round(x.std((0, 2, 3)) / 255, 4))


def test_the_fine_labels_are_taken_not_the_coarse_ones(root):
    (x, y), path = PAIRS[CIFAR100][0], shard(root, CIFAR100)
    made.write_shard(path, x, y, column="img", label="fine_label", coarse_label=list(y // 5))
    assert (files.read_shard(path, CIFAR100)[1] == y).all()
    batch = {b"data": x.reshape(60, -1), b"coarse_labels": (y // 5).tolist(), b"fine_labels": y.tolist(), b"batch_label": b"1 of 1", b"filenames": [b"a.png"] * 60}
    path = root/"train"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    assert (read_batch(path, CIFAR100)[1] == y).all()


def test_names_of_cached_files_and_fingerprints_stay(root):
    write_shards(root, CIFAR10)
    X = PAIRS[CIFAR10][0][0]
    digest = hashlib.sha256()
    for part in ("train", "test"):
        digest.update(hashlib.sha256((root/f"cifar10/{part}-00000-of-00001.parquet").read_bytes()).digest())
    images = data.load_images("cifar10")
    assert [p.name for p in data.cache_folder().iterdir()] == [f"cifar10-{digest.hexdigest()[:16]}.safetensors"]
    assert images.fingerprint == data.fingerprint(images.train_x, images.train_y, images.test_x, images.test_y)
    order = sorted(range(60), key=lambda i: hashlib.sha256(X[i].tobytes()).digest())
    assert (images.train_x.numpy() == X[order]).all()


@every
def test_a_damaged_cache_is_made_again(root, source):
    write_own(root, source)
    before = data.load_images(source.name)
    cache, = data.cache_folder().glob(f"{source.name}-*.safetensors")
    whole = cache.read_bytes()
    for spoilt in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        cache.write_bytes(spoilt)
        assert same(data.load_images(source.name), before)
        assert cache.read_bytes() == whole


@every
def test_auto_falls_back_to_digits_and_says_so(root, source):
    write_shards(root, CIFAR100 if source is CIFAR10 else CIFAR10)  # which is there, but not wanted
    images = data.load_images("auto", wanted=source.name)
    assert images.name == "digits" and "not comparable with the paper's" in images.note
    assert f"{source.title} was neither found" in images.note


def test_auto_is_cifar10_unless_another_is_wanted(root):
    for source in N: write_shards(root, source)
    assert [data.load_images(*asked).name for asked in [(), ("auto",), ("auto", "cifar100"), ("cifar100",), ("cifar10", "cifar100"), ("auto", "stl10")]] == [
        "cifar10", "cifar10", "cifar100", "cifar100", "cifar10", "stl10"]
    for wrong, says in [(("cifar",), "data set 'cifar'.*'cifar10'"), (("auto", "digits"), "wanted data set 'digits'.*cifar10, cifar100")]:
        with pytest.raises(InputError, match=says): data.load_images(*wrong)


@every
def test_a_name_insists_and_names_the_ways(root, source):
    with pytest.raises(InputError, match=f"{source.title} was.*no network.*{source.folder} there, with {source.train[0]}.*parquet shards.*, {source.labels[0]}\\) "
                                         f"in its subfolder {source.name}") as caught: data.load_images(source.name)
    assert ("torchvision can download it" in str(caught.value)) == (source is not TINY_IMAGENET)


@every
def test_torchvision_is_asked_for_the_right_one(root, monkeypatch, source):
    def fetch(folder, download): write_own(folder, source)
    def fail(folder, download): raise OSError("unreachable")
    monkeypatch.undo()
    monkeypatch.setenv("KDNB_DATA", str(root))
    monkeypatch.setenv("KDNB_CACHE", str(root.parent/"cache"))
    for name in ("CIFAR10", "CIFAR100", "STL10", "FashionMNIST"): monkeypatch.setattr(torchvision.datasets, name, fail)
    says = "torchvision does not have it" if source is TINY_IMAGENET else "OSError: unreachable"
    with pytest.raises(InputError, match=says): data.load_images(source.name)
    if source is TINY_IMAGENET: return
    monkeypatch.setattr(torchvision.datasets, source.torchvision, lambda folder, download: None)
    with pytest.raises(InputError, match="the download left no such files"): data.load_images(source.name)
    monkeypatch.setattr(torchvision.datasets, source.torchvision, fetch)
    assert data.load_images(source.name).name == source.name


def refused(root, source, says, where):
    "Both `auto` and the name itself refuse, in one sentence that says this and names the place."
    for asked in (("auto", source.name), (source.name,)):
        with pytest.raises(InputError, match=says) as caught: data.load_images(*asked)
        assert str(root) in str(caught.value) and where in str(caught.value) and "\n" not in str(caught.value)


def rewrite(change):
    def spoil(path, source):
        made.write_shard(path, *change(*PAIRS[source][0], len(source.classes)), label=source.labels[0])
    return spoil


def without_an_image(path, source):
    images = pyarrow.array([None], pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    pyarrow.parquet.write_table(pyarrow.table({"image": images, source.labels[0]: [0]}), path)


@pytest.mark.parametrize("spoil,says", [
    (lambda p, s: p.write_bytes(p.read_bytes()[:500]), "truncated"),
    (lambda p, s: p.write_bytes(b"not parquet"), "parquet"),
    (rewrite(lambda x, y, n: (x, [*y[1:], n])), "label {n};.*from 0 to {last}"),
    (rewrite(lambda x, y, n: (x, [*y[1:], -1])), "label -1"),
    (rewrite(lambda x, y, n: (x, [*y[1:], None])), "labels of type float"),
    (rewrite(lambda x, y, n: (x[:, :, :20], y)), "{side} x 20 pixels; it should have {side} x {side}"),
    (lambda p, s: made.write_shard(p, *PAIRS[s][0], column="picture", label=s.labels[0]), "picture, {label}; {title} shards"),
    (lambda p, s: made.write_shard(p, *PAIRS[s][0], label="coarse_label"), "image, coarse_label; {title} shards have .* and {label}"),
    (without_an_image, "image 0 of .* decoded"),
    (lambda p, s: made.write_shard(p, PAIRS[s][0][0][:0], np.zeros(0, int), label=s.labels[0]), "has the columns image, {label}"),
    (lambda p, s: p.rename(p.with_name("train-00000-of-00003.parquet")), "1 of 3"),
    (lambda p, s: p.unlink(), "train"),
])
@every
def test_a_wrong_shard_is_named_whatever_was_asked(root, spoil, says, source):
    write_shards(root, source)
    spoil(shard(root, source), source)
    refused(root, source, says.format(n=len(source.classes), last=len(source.classes) - 1, label=source.labels[0],
                                      title=source.title, side=source.shape[1]), source.name)


def test_one_data_set_is_not_taken_for_the_other(root):
    write_shards(root, CIFAR10)
    for path in (root/"cifar10").iterdir(): path.rename(root/path.name)  # in the data folder itself
    assert data.load_images("cifar10").name == "cifar10"
    for source in (CIFAR100, STL10):
        with pytest.raises(InputError, match=f"{source.title} was not found"): data.load_images(source.name)
    write_shards(root, CIFAR100)
    assert [data.load_images(name).name for name in ("cifar10", "cifar100")] == ["cifar10", "cifar100"]
    (root/"cifar100").rename(root/"cifar10")
    with pytest.raises(InputError, match="image, fine_label; CIFAR-10 shards"): data.load_images("cifar10")


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_validation_images_of_tiny_imagenet_are_its_test_images(root, name):
    write_shards(root, TINY_IMAGENET)
    path = root/"tiny_imagenet/val-00000-of-00001.parquet"
    path.rename(path.with_name(f"{name}-00000-of-00001-70d5.parquet"))
    images = data.load_images("tiny_imagenet")
    assert len(images.test_x) == N[TINY_IMAGENET][1]
    write_shards(root, TINY_IMAGENET)  # "val" comes first, and "valid" is called so too
    if name == "test": assert same(data.load_images("tiny_imagenet"), images)
    else:
        with pytest.raises(InputError, match="2 of 1 val"): data.load_images("tiny_imagenet")


def test_compressed_idx_files_are_the_same_data_set(root):
    write_own(root, FASHION_MNIST)
    plain = data.load_images("fashion_mnist")
    for path in list((root/FASHION_MNIST.folder).iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        if "train" in path.name: path.unlink()  # some lie there in both forms
    assert same(data.load_images("fashion_mnist"), plain)


def test_torchvision_reads_what_is_written_here(root, monkeypatch):
    "The layouts are torchvision's: its own classes find the same images, so the real files are read rightly too."
    for source in (STL10, FASHION_MNIST): write_own(root, source)
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    for source, theirs in ((STL10, torchvision.datasets.STL10(root, "test")), (FASHION_MNIST, torchvision.datasets.FashionMNIST(root, train=False))):
        own = source.read(data.own_files(source, root)["test"], source)
        assert [int(label) for _, label in theirs] == own[1].tolist()
        assert all((np.asarray(image).reshape(*source.shape[1:], -1).transpose(2, 0, 1) == x).all() for (image, _), x in zip(theirs, own[0]))


def test_a_folder_whose_files_change_places_is_another_data_set(root):
    "Names are labels: the cache must not take one for the other."
    write_own(root, TINY_IMAGENET)
    before = data.load_images("tiny_imagenet")
    a, b = sorted((root/TINY_IMAGENET.folder/"train").iterdir())[:2]
    a.rename(a.with_name("other")), b.rename(a), (a.parent/"other").rename(b)
    after = data.load_images("tiny_imagenet")
    assert after.train_x.equal(before.train_x) and (after.train_y != before.train_y).sum() == 2
    assert after.fingerprint != before.fingerprint


def test_tiny_imagenet_is_read_with_and_without_inner_folders(root):
    write_own(root, TINY_IMAGENET)
    before, train = data.load_images("tiny_imagenet"), root/TINY_IMAGENET.folder/"train"
    for path in list(train.rglob("*.JPEG")):
        path.rename(path.parent.parent/path.name)
        (path.parent.parent/f"{path.parent.parent.name}_boxes.txt").write_text("0 0 63 63")  # as in the archive
    assert same(data.load_images("tiny_imagenet"), before)


@pytest.mark.parametrize("spoil,says", [
    (lambda p, s: p.write_bytes(p.read_bytes()[:500]), "truncated"),
    (lambda p, s: p.write_bytes(b"\x80\x02cos\nsystem\n."), "it asks for os.system"),
    (lambda p, s: p.write_bytes(pickle.dumps([1])), "of another kind"),
    (lambda p, s: made.write_own(p.parents[1], replace(s, key="coarse_labels"), *PAIRS[s]), "it has no {key}"),
    (lambda p, s: p.write_bytes(pickle.dumps({s.key.encode(): [0]})), "it has no data"),
    (lambda p, s: p.write_bytes(pickle.dumps({b"data": PAIRS[s][0][0].reshape(60, -1), s.key.encode(): [0] * 59})), "60 images and 59 labels"),
    (lambda p, s: p.write_bytes(pickle.dumps({b"data": PAIRS[s][0][0][:1].reshape(1, -1), s.key.encode(): [len(s.classes)]})), "label {n};.*0 to {last}"),
    (lambda p, s: p.unlink(), "copy the whole folder"),
])
@pytest.mark.parametrize("part", ["train", "test"])
@cifar
def test_a_wrong_batch_file_is_named(root, spoil, says, part, source):
    write_own(root, source)
    name = getattr(source, part)[-1]
    spoil(root/source.folder/name, source)
    says = says.format(key=source.key, n=len(source.classes), last=len(source.classes) - 1)
    named = source.train[0] if "no " + source.key in says else name  # the first one read, where all are wrong
    refused(root/source.folder, source, says, named)


def half(path): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def jpeg(height, width):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "jpeg")
    return buffer.getvalue()


TRAIN_IDX, TEST_IDX = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
OF_TABLE, PICTURE = "val/val_annotations.txt", "val/images/val_2.JPEG"


@pytest.mark.parametrize("source,name,spoil,says", [
    (STL10, "train_X.bin", half, "no whole number of 96 x 96 pixels"),
    (STL10, "test_X.bin", lambda p: p.write_bytes(bytes(3 * 96 * 96)), "has 1 images and test_y.bin has 5 labels"),
    (STL10, "test_y.bin", half, "test_X.bin has 5 images and test_y.bin has 2 labels"),
    (STL10, "train_y.bin", lambda p: p.write_bytes(bytes([1, 2, 3, 4, 0, 6, 7, 8, 9])), "label 0; labels should be from 1 to 10"),
    (STL10, "train_y.bin", lambda p: p.write_bytes(bytes([1, 2, 3, 4, 11, 6, 7, 8, 9])), "label 11; labels should be from 1 to 10"),
    (STL10, "train_y.bin", lambda p: p.unlink(), "stl10_binary has no train_y.bin: copy the whole folder"),
    (FASHION_MNIST, TRAIN_IDX, half, "as an IDX file: it is truncated"),
    (FASHION_MNIST, TRAIN_IDX, lambda p: p.write_bytes(p.read_bytes() + b"0"), "as an IDX file"),
    (FASHION_MNIST, TRAIN_IDX, lambda p: p.write_bytes(b""), "as an IDX file"),
    (FASHION_MNIST, TRAIN_IDX, lambda p: p.write_bytes(bytes([0, 0, 8, 3])), "as an IDX file"),
    (FASHION_MNIST, TRAIN_IDX, lambda p: p.write_bytes(b"\x80\x02cos\nsystem\n."), "does not start as 3-dimensional bytes do"),
    (FASHION_MNIST, TRAIN_IDX, lambda p: p.write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 30], *[0, 0, 0, 14], *[0, 0, 0, 56]]) + bytes(30 * 28 * 28)),
     "images of 56 x 14 pixels; Fashion-MNIST has 28 x 28"),
    (FASHION_MNIST, TEST_IDX, lambda p: p.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 10]) + bytes([10] * 10)), "label 10; labels should be from 0 to 9"),
    (FASHION_MNIST, TEST_IDX, lambda p: p.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2]) + bytes(2)), "has 10 images and t10k-labels-idx1-ubyte has 2 labels"),
    (FASHION_MNIST, TEST_IDX, lambda p: p.unlink(), "raw has no t10k-labels-idx1-ubyte"),
    (FASHION_MNIST, TEST_IDX, lambda p: p.rename(p.with_name(p.name + ".gz")), "ubyte.gz cannot be read as an IDX file"),
    (TINY_IMAGENET, PICTURE, half, "val_2.JPEG is not a PNG, JPEG or WebP image that can be decoded"),
    (TINY_IMAGENET, PICTURE, lambda p: p.write_bytes(jpeg(32, 64)), "val_2.JPEG has 64 x 32 pixels; it should have 64 x 64"),
    (TINY_IMAGENET, PICTURE, lambda p: p.unlink(), "val_2.JPEG is not in .*lists it"),
    (TINY_IMAGENET, OF_TABLE, half, "val_[345].JPEG is in .*does not list it"),
    (TINY_IMAGENET, OF_TABLE, lambda p: p.write_bytes(b"\xff\xfe"), "as a table of images"),
    (TINY_IMAGENET, OF_TABLE, lambda p: p.write_text(p.read_text().replace(TINY_IMAGENET.classes[3], "n00000000")), "val_1.JPEG in a class 'n00000000', which Tiny-ImageNet"),
    (TINY_IMAGENET, OF_TABLE, lambda p: p.unlink(), "has no val/val_annotations.txt"),
    (TINY_IMAGENET, "train", lambda p: next(p.iterdir()).rename(p/"goldfish"), "train has .*JPEG in a class 'goldfish'"),
    (TINY_IMAGENET, "train", lambda p: (shutil.rmtree(p), p.mkdir()), "train has no images"),
    (TINY_IMAGENET, "train", shutil.rmtree, "tiny-imagenet-200 has no train: copy"),
    (STL10, "train_X.bin", lambda p: (p.write_bytes(b""), p.with_name("train_y.bin").write_bytes(b"")), "no train images: .*train_X.bin"),
    (FASHION_MNIST, TRAIN_IDX, lambda p: (p.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 0, *[0, 0, 0, 28] * 2])),
                                          p.with_name("train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 0]))), "no train images"),
])
def test_a_wrong_file_is_named(root, source, name, spoil, says):
    write_own(root, source)
    write_shards(root, source)  # which are not taken in its place
    spoil(root/source.folder/name)
    refused(root/source.folder, source, says, name.split("/")[-1])


def test_resized_and_coloured():
    digits = replace(data.load_images("digits"), note="A note.")
    images = digits.split(100)
    large, grey = data.resized(images, 20), data.coloured(images)
    assert (large.shape, large.pad, large.name, large.flip) == ((1, 20, 20), 2, "digits", False)
    assert (grey.shape, grey.pad) == ((3, 8, 8), 1) and all((x == images.train_x[:, 0]).all() for x in grey.train_x.unbind(1))
    for new in (large, grey):
        assert new.note.startswith("A note. The ") and all(len(getattr(new, p)) == len(getattr(images, p)) for p in data.PARTS)
        assert new.train_y is images.train_y and new.val_y is images.val_y and new.test_y is images.test_y
    assert len({x.fingerprint for x in (images, large, grey, data.resized(images, 21), data.resized(grey, 20))}) == 5
    assert data.resized(digits, 20).fingerprint == large.fingerprint  # split before or after: the same images
    assert data.resized(digits.split(100, train=600), 20).fingerprint != large.fingerprint
    both = torch.cat([large.train_x, large.val_x]) / 255
    assert large.mean == pytest.approx((both.mean().item(),), abs=1e-4) and large.std == pytest.approx((both.std().item(),), abs=1e-4)
    assert grey.mean == images.mean * 3 and data.resized(images, 8) is images and data.coloured(grey) is grey
    for side in (0, -1, 2.5, "8"):
        with pytest.raises(InputError, match="side="): data.resized(images, side)


def test_resizing_averages_where_it_shrinks_and_keeps_what_is_flat():
    x = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    x[0] = 77
    x[1, :, ::2] = 200  # stripes of one pixel: without antialiasing a third of the rows is all or nothing
    small = data.resized_images(x, 32)
    assert (small[0] == 77).all() and small[1].float().sub(100).abs()[:, 1:-1].max() < 40
    assert data.resized_images(x[:0], 32).shape == (0, 3, 32, 32)


def test_statistics_of_several_arrays_are_those_of_all_their_pixels():
    x = rng.integers(0, 256, (2500, 3, 4, 5), np.uint8)
    expected = tuple(tuple(np.round(f(x / 255, (0, 2, 3)), 4).tolist()) for f in (np.mean, np.std))
    assert data.statistics(x) == data.statistics(x[:1200], x[1200:], x[:0]) == expected


def test_the_digits_are_always_the_same():
    images = data.load_images("digits")
    assert images.fingerprint == "5353a19c05c914cd9a26384e3d5b39cfb9f2db170aaa9eada8e3e0317af64815"
    assert (images.shape, images.mean, images.std, images.pad, images.flip) == ((1, 8, 8), (0.3066,), (0.3763,), 1, False)


def test_an_identity_says_which_images(root):
    images = data.load_images("digits").split(200, train=1000, test=300)
    identity = images.identity
    assert str(identity) == "digits 1000/200/300" and identity == data.Identity("digits", 1000, 200, 300, "5353a19c05c9")
    assert data.resized(images, 16).identity != identity


PETS = files.Source("pets", "Pets", ("cat", "dog"), (7, 3), (3, 8, 8), 1, True, "pets", ("train",), ("test",), files.read_folders, ("pets/**/*.parquet",))


def pets(root, source=PETS):
    x = rng.integers(0, 256, (10, 3, 8, 8), np.uint8)
    made.write_own(root, source, (x[:7], np.arange(7) % 2), (x[7:], np.arange(3) % 2))
    return x


def test_folders_of_images_are_a_data_set_whatever_their_files_are_called(root):
    x = pets(root)
    before = data.local_images(PETS, root)
    assert before.train_x.numpy().tobytes() == data.canonical(x[:7], np.arange(7) % 2)[0].tobytes() and before.note == ""
    first, second, *_ = sorted((root/"pets/train").rglob("*.png"))
    first.rename(first.with_name("Z.PNG"))
    Image.open(second).save(second.with_suffix(".webp"), lossless=True), second.unlink()
    (root/"pets/train/cat/notes.txt").write_text("not an image")
    assert same(data.local_images(PETS, root), before)
    (root/"pets/train/wolf").mkdir()
    (root/"pets/train/cat/Z.PNG").rename(root/"pets/train/wolf/Z.PNG")
    with pytest.raises(InputError, match="Z.PNG in a class 'wolf', which Pets does not have"): data.local_images(PETS, root)


def test_what_was_decoded_for_another_description_is_decoded_again(root):
    pets(root)
    before, other = data.local_images(PETS, root), replace(PETS, classes=("dog", "cat"))
    swapped = data.local_images(other, root)
    assert swapped.train_x.equal(before.train_x) and swapped.train_y.equal(1 - before.train_y)
    assert same(data.local_images(PETS, root), before)
    with pytest.raises(InputError, match="has 8 x 8 pixels; it should have 9 x 9"): data.local_images(replace(PETS, shape=(3, 9, 9)), root)


def test_counts_that_are_not_stated_are_not_missed(root):
    pets(root)
    assert data.local_images(replace(PETS, counts=None), root).note == ""
    assert "has 7 training and 3 test images instead of 70 and 30" in data.local_images(replace(PETS, counts=(70, 30)), root).note


def test_a_folder_may_hold_shards_instead(root):
    x = rng.integers(0, 256, (5, 3, 8, 8), np.uint8)
    made.write_shards(root, PETS, (x[:3], [0, 1, 0]), (x[3:], [1, 0]))
    assert len(data.local_images(PETS, root).train_x) == 3
    pets(root)
    shutil.rmtree(root/"pets/test")
    with pytest.raises(InputError, match="pets has no test: copy the whole folder"): data.local_images(PETS, root)


def test_a_data_set_goes_by_one_name(monkeypatch):
    monkeypatch.setitem(data_sets._factories, "pet", lambda: PETS)
    with pytest.raises(InputError, match="registered as 'pet' has the name 'pets'"): data.load_images("pet")


def picture(image, encoding="png", **options):
    "A picture's file."
    image.save(buffer := io.BytesIO(), encoding, **options)
    return buffer.getvalue()


def test_pictures_that_show_the_same_are_the_same_image():
    "Whether with a palette, with an opaque alpha channel, in three equal channels or turned: what a viewer shows counts."
    x = rng.integers(0, 4, (8, 8, 1), np.uint8).repeat(3, 2) * 80 + 5
    upright, exif = Image.fromarray(x), Image.Exif()
    forms = [picture(upright.convert("L" if mode == "P" else mode).convert(mode), encoding, **({"lossless": True} if encoding == "webp" else {}))
             for mode, encoding in (("RGB", "png"), ("L", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("RGB", "webp"), ("RGBA", "webp"))]
    for turn, code in ((Image.Transpose.ROTATE_90, 6), (Image.Transpose.ROTATE_180, 3), (Image.Transpose.FLIP_LEFT_RIGHT, 2)):
        exif[0x0112] = code
        forms.append(picture(upright.transpose(turn), exif=exif))
    for shape in ((3, 8, 8), (1, 8, 8)): assert (files.decode_all(forms, str, shape) == x.transpose(2, 0, 1)[:shape[0]]).all()


def clear(): return Image.fromarray(np.full((8, 8, 4), 254, np.uint8))


@pytest.mark.parametrize("content,says", [
    (picture(clear()), "transparent in places"), (picture(clear(), "webp"), "transparent in places"), (picture(Image.new("P", (8, 8)), transparency=0), "transparent"),
    (picture(Image.new("RGB", (8, 8)), transparency=(0, 0, 0)), "transparent"), (picture(Image.new("RGB", (8, 8), "red")), "colours; it should be grey"),
    (picture(Image.fromarray(np.full((8, 8), 300, np.uint16))), "pixels of kind I;16"), (picture(Image.new("L", (8, 80))), "8 x 80 pixels; it should have 8 x 8"),
    (picture(Image.new("L", (8, 8)), save_all=True, append_images=[Image.new("L", (8, 8), 9)]), "2 pictures in one file"),
    (picture(Image.new("L", (8, 8)), "gif"), "not a PNG, JPEG or WebP image"), (bytes(2**21), "has 2097152 bytes; there should be no more"),
])
def test_a_picture_whose_pixels_would_change_is_refused(content, says):
    with pytest.raises(InputError, match=says): files.decode_all([content], lambda i: "image 0", (1, 8, 8))


def test_a_large_picture_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *given: pytest.fail("it was decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda *given: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="has 500 x 400 pixels; it should have 8 x 8"): files.decode(LARGE, "image 0", (3, 8, 8))


LARGE = picture(Image.new("RGB", (500, 400)))


@pytest.mark.parametrize("array", [np.arange(12, dtype=np.uint8).reshape(3, 4), np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
                                   np.arange(12, dtype=">i4").reshape(3, 2, 2), np.array([-1, 5])], ids=["rows", "columns", "highest byte first", "signed"])
@pytest.mark.parametrize("protocol", range(2, 6))
def test_an_array_is_read_from_every_protocol(array, protocol):
    found = read_array(read_pickle(pickle.dumps(array, protocol)))
    assert (found == array).all() and found.dtype == array.dtype and found.flags.writeable


def test_a_batch_whose_pixels_lie_in_columns_is_the_same(tmp_path):
    x, y = PAIRS[CIFAR10][0]
    for i, rows in enumerate((x.reshape(60, -1), np.asfortranarray(x.reshape(60, -1)))):
        (tmp_path/str(i)).write_bytes(pickle.dumps({b"data": rows, b"labels": y}, 2))
        assert (read_batch(tmp_path/str(i), CIFAR10)[0] == x).all()


def folder_for_file(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def too_long(path): os.truncate(path, 2**33)


@pytest.mark.parametrize("source,name", [(CIFAR10, "data_batch_3"), (CIFAR100, "train"), (STL10, "train_X.bin"), (FASHION_MNIST, TRAIN_IDX), (TINY_IMAGENET, OF_TABLE),
                                         (TINY_IMAGENET, PICTURE)], ids=lambda given: getattr(given, "name", given))
@pytest.mark.parametrize("spoil,says", [(folder_for_file, "is not a file"), (pipe, "is not a file"), (too_long, "has 8589934592 bytes; there should be no more")])
def test_what_is_no_file_or_far_too_long_is_refused(root, source, name, spoil, says):
    write_own(root, source)
    spoil(root/source.folder/name)
    part = "train" if name in source.train or "data_batch" in name else "test"
    paths = [root/source.folder/own for own in getattr(source, part)]
    with pytest.raises(InputError, match=f"{name}.* {says}") as caught: source.read(paths, source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [pipe, link_to_itself])
def test_no_digest_is_made_of_what_is_no_file(tmp_path, spoil):
    (tmp_path/"a").write_bytes(b"a")
    spoil(tmp_path/"a")
    with pytest.raises(InputError, match="a (is not a file|cannot be read)"): data.digest(tmp_path/"a")


def test_a_file_that_may_not_be_read_is_named(root, monkeypatch):
    def closed(*given, **more): raise PermissionError(13, "Permission denied")
    write_own(root, STL10)
    monkeypatch.setattr("pathlib.Path.read_bytes", closed)
    with pytest.raises(InputError, match="train_X.bin cannot be read .Permission denied."): data.load_images("stl10")


def test_a_folder_called_like_a_shard_is_named(root):
    write_shards(root, CIFAR10)
    folder_for_file(shard(root, CIFAR10))
    refused(root, CIFAR10, "is not a file; a parquet file should lie there", "train-00000")


def test_pictures_of_other_kinds_are_not_passed_over(root):
    pets(root)
    Image.new("RGB", (8, 8)).save(root/"pets/train/cat/more.BMP", "bmp")
    with pytest.raises(InputError, match="more.BMP is of a kind that is not read"): data.local_images(PETS, root)


def test_an_image_with_two_classes_is_refused(root):
    write_own(root, TINY_IMAGENET)
    table = root/TINY_IMAGENET.folder/OF_TABLE
    table.write_text(table.read_text() + f"val_2.JPEG\t{TINY_IMAGENET.classes[7]}\n")
    refused(root, TINY_IMAGENET, "lists val_2.JPEG more than once", "val_annotations.txt")


def test_what_other_rules_decoded_is_decoded_again(root, monkeypatch):
    pets(root)
    before = data.reading(PETS)
    monkeypatch.setattr(data, "FORMATS", (*files.FORMATS, "BMP"))
    assert data.reading(PETS) != before
