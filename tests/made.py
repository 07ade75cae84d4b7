"Small data sets on disk, in the layouts in which the real ones lie."
import io
import math
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from kdnb.data.files import data_sets, read_folders
from kdnb.data.sets.cifar import read_batches
from kdnb.data.sets.fashion_mnist import read_idx_pair
from kdnb.data.sets.stl10 import read_stl10
from kdnb.data.sets.tiny_imagenet import read_tiny_imagenet


def encoded(image, encoding):
    "An image `[ch, h, w]` as the bytes of a PNG, JPEG or WebP file."
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, encoding)
    return buffer.getvalue()


def write_shard(path, x, y, column="image", encoding="png", label="label", **more):
    "Writes images `[n, ch, h, w]` and labels as a parquet shard in Hugging Face's layout; `more` are further columns."
    rows = [{"bytes": encoded(image, encoding), "path": f"{i}.{encoding}"} for i, image in enumerate(x)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: rows, label: list(y), **more}), path)


def write_shards(root, source, train, test, **options):
    "Writes training and test pairs as one parquet shard each, where `shards` finds them."
    for part, pair in (("train", train), (source.tested[0], test)):
        write_shard(root/source.name/f"{part}-00000-of-00001.parquet", *pair, **{"label": source.labels[0], **options})


def write_levels(root, train, test):
    "Writes so many training and test images as CIFAR-10's shards: noise whose level is that of its class."
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, train + test)
    x = np.clip(rng.normal(128, 30, (len(y), 3, 32, 32)) + 8 * y[:, None, None, None], 0, 255).astype(np.uint8)
    write_shards(root, data_sets.build("cifar10"), (x[:train], y[:train]), (x[train:], y[train:]), encoding="webp")


def write_batches(folder, source, names, x, y):
    "Writes images and labels as torchvision's batch files of CIFAR."
    for i, name in enumerate(names):
        mine = slice(i, None, len(names))
        batch = {b"data": x[mine].reshape(len(x[mine]), math.prod(source.shape)), source.key.encode(): [int(label) for label in y[mine]]}
        (folder/name).write_bytes(pickle.dumps(batch, protocol=2))


def write_stl10(folder, source, names, x, y):
    "Writes images and labels as STL-10's bytes."
    (folder/names[0]).write_bytes(x.transpose(0, 1, 3, 2).tobytes())
    (folder/names[1]).write_bytes((np.asarray(y) + 1).astype(np.uint8).tobytes())


def write_idx(folder, source, names, x, y):
    "Writes images and labels as IDX files."
    for name, values in zip(names, (x[:, 0], np.asarray(y))):
        start = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder/name).write_bytes(start + values.astype(np.uint8).tobytes())


def write_tiny_imagenet(folder, source, names, x, y):
    "Writes images and labels as a folder of classes, or as a folder with a table."
    wnids = [source.classes[label] for label in y]
    if len(names) == 1: files = [folder/names[0]/wnid/"images"/f"{wnid}_{i}.JPEG" for i, wnid in enumerate(wnids)]
    else: files = [folder/names[1]/f"val_{i}.JPEG" for i in range(len(y))]
    for path, image in zip(files, x):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, "jpeg"))
    if len(names) > 1:
        (folder/names[0]).write_text("".join(f"{path.name}\t{wnid}\t0\t0\t63\t63\n" for path, wnid in zip(files, wnids)))


def write_folders(folder, source, names, x, y):
    "Writes images and labels as PNG files in a folder for each class."
    for i, (image, label) in enumerate(zip(x, y)):
        path = folder/names[0]/source.classes[label]/f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, "png"))


WRITERS = {read_batches: write_batches, read_stl10: write_stl10, read_idx_pair: write_idx,
           read_tiny_imagenet: write_tiny_imagenet, read_folders: write_folders}


def write_own(root, source, train, test):
    "Writes training and test pairs as a data set's own files, where `own_files` finds them."
    (root/source.folder).mkdir(parents=True, exist_ok=True)
    for names, pair in ((source.train, train), (source.test, test)):
        WRITERS[source.read](root/source.folder, source, names, *pair)
