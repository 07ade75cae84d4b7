"Whatever bytes of a file are changed, cut or inserted: it gives images, or one sentence says why not."
import gzip
import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import kdnb.data.images as data
import made
from kdnb.data.files import read_folders, read_shard
from kdnb.data.pickles import read_pickle
from kdnb.data.sets.cifar import read_batch, read_batches
from kdnb.data.sets.fashion_mnist import read_idx_pair
from kdnb.data.sets.stl10 import read_stl10
from kdnb.data.sets.tiny_imagenet import read_tiny_imagenet
from kdnb.registry import InputError
from limited import SMALL
from test_crafted import GOOD

GREY = replace(SMALL, shape=(1, 8, 8))
x, y = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8), np.array([0, 1, 1, 0])
few = settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
edit = st.tuples(st.sampled_from(["flip", "put", "cut", "insert", "repeat"]), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.integers(1, 40))
edits = st.lists(edit, min_size=1, max_size=4)


def edited(content, changes):
    "Bytes with some of them flipped, replaced, cut, inserted or repeated."
    content = bytearray(content)
    for what, where, value, n in changes:
        at = int(where * len(content))
        if what == "flip" and content: content[at] ^= value
        elif what == "put": content[at:at + 1] = bytes([value])
        elif what == "cut": del content[at:at + n]
        elif what == "insert": content[at:at] = bytes([value]) * n
        else: content[at:at] = content[at:at + n]
    return bytes(content)


def files_of(write, source, folder, *names):
    "The files that a writer writes, as names and contents."
    write(folder, source, names, x[:, :source.shape[0]], y)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def batches(protocol):
    values = {b"data": x.reshape(4, -1), b"labels": y.tolist(), b"filenames": [b"a.png"] * 4}
    return lambda folder: {"data_batch_1": pickle.dumps(values, protocol)}


def shards(encoding):
    def files(folder):
        made.write_shard(folder/"train.parquet", x, y, encoding=encoding)
        return {"train.parquet": (folder/"train.parquet").read_bytes()}
    return files


def compressed(folder): return {f"{name}.gz": gzip.compress(content) for name, content in files_of(made.write_idx, GREY, folder, "images", "labels").items()}


def folders(encoding):
    def files(folder):
        for i, (image, label) in enumerate(zip(x, y)):
            (folder/SMALL.classes[label]).mkdir(exist_ok=True)
            (folder/SMALL.classes[label]/f"{i}.{encoding}").write_bytes(made.encoded(image, encoding))
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    return files


def pair(folder, ending=""): return [folder/f"images{ending}", folder/f"labels{ending}"]


KINDS = {
    **{f"a batch of protocol {n}": (batches(n), lambda folder: read_batches([folder/"data_batch_1"], SMALL)) for n in range(2, 6)},
    "a batch of Python 2": (lambda folder: {"data_batch_1": GOOD}, lambda folder: read_batches([folder/"data_batch_1"], SMALL)),
    **{f"a shard of {encoding}": (shards(encoding), lambda folder: read_shard(folder/"train.parquet", SMALL)) for encoding in ("png", "jpeg", "webp")},
    "IDX files": (lambda folder: files_of(made.write_idx, GREY, folder, "images", "labels"), lambda folder: read_idx_pair(pair(folder), GREY)),
    "compressed IDX files": (compressed, lambda folder: read_idx_pair(pair(folder, ".gz"), GREY)),
    "files of bytes": (lambda folder: files_of(made.write_stl10, SMALL, folder, "images", "labels"), lambda folder: read_stl10(pair(folder), SMALL)),
    "a table and its images": (lambda folder: files_of(made.write_tiny_imagenet, SMALL, folder, "table.txt", "images"), lambda folder: read_tiny_imagenet([folder/"table.txt", folder/"images"], SMALL)),
    **{f"folders of {encoding}": (folders(encoding), lambda folder: read_folders([folder], SMALL)) for encoding in ("png", "jpeg", "webp")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_images_or_one_sentence(tmp_path, kind):
    make, read = KINDS[kind]
    (tmp_path/"written").mkdir()
    files, shape = make(tmp_path/"written"), (GREY if "IDX" in kind else SMALL).shape
    for name, content in files.items():
        path = tmp_path/"read"/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert read(tmp_path/"read")[1].tolist() == sorted(y) if "folders" in kind else True

    @few
    @given(name=st.sampled_from(sorted(files)), changes=edits)
    def reads(name, changes):
        path = tmp_path/"read"/name
        path.write_bytes(edited(files[name], changes))
        try: images, labels = read(tmp_path/"read")
        except InputError as e:
            said = str(e).replace(str(tmp_path), "")
            assert said.isprintable() and len(said) < 300 and said.endswith(".")
        else:
            assert images.dtype == np.uint8 and images.shape == (len(labels), *shape)
            assert labels.dtype == np.int64 and set(labels.tolist()) <= {0, 1}
        finally: path.write_bytes(files[name])
    reads()


@few
@given(changes=edits)
def test_damaged_pixels_of_a_png_are_not_taken(changes):
    "Check sums make sure of it: what is taken has the pixels that were written."
    before = made.encoded(x[0], "png")
    after = edited(before, changes)
    try: pixels = data.canonical(*read_one(after))[0][0]
    except InputError: return
    assert (pixels == x[0]).all()


def read_one(content):
    from kdnb.data.files import decode_all
    return decode_all([content], str, SMALL.shape), np.zeros(1)


@settings(few, max_examples=2000)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_pickle_or_are_refused(content):
    for start in (b"", b"\x80\x02", b"\x80\x04}("):
        try: read_pickle(start + content)
        except ValueError as e: assert str(e)


def test_a_damaged_cache_is_the_same_images_or_none(tmp_path):
    path, pairs = tmp_path/"small.safetensors", {"train": (x, y), "test": (x[:2], y[:2])}
    data.keep_in_cache(path, pairs, SMALL)
    whole = path.read_bytes()

    @few
    @given(changes=edits)
    def reads(changes):
        path.write_bytes(edited(whole, changes))
        found = data.from_cache(path, SMALL)
        assert found is None or all((a == b).all() for part in pairs for a, b in zip(found[part], pairs[part]))
    reads()
