"The small parts of reading files: a shard's columns, a numbered set, pixels of a size."
import io
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image

from kdnb.data.files import check_labels, columns, data_sets, decode, joined, numbered
from kdnb.registry import InputError

CIFAR10 = data_sets.build("cifar10")


def shard(image="image", label="label", **struct):
    return pyarrow.table({image: pyarrow.array([struct]), label: [0]})


def test_a_shard_has_a_struct_with_bytes_and_a_label():
    assert columns(shard(bytes=b"", path="").schema, Path("p"), CIFAR10) == ("image", "label") and columns(shard("img", bytes=b"").schema, Path("p"), CIFAR10)[0] == "img"
    for table in (shard(path=""), shard(other=b""), shard("picture", bytes=b""), shard(label="y", bytes=b""), pyarrow.table({"image": [b""], "label": [0]})):
        with pytest.raises(InputError, match="p has the columns .*CIFAR-10 shards have"): columns(table.schema, Path("p"), CIFAR10)


@pytest.mark.parametrize("there,whole", [([0], False), ([0, 1], False), ([0, 1, 2], True)])
def test_a_numbered_set_is_whole(there, whole):
    files = [Path(f"train-0000{i}-of-00003.parquet") for i in there] + [Path("test.parquet")]
    if whole: assert numbered(files, ("train",), Path("f")) == files[:-1]
    else:
        with pytest.raises(InputError, match=f"f has {len(there)} of 3 train shards"): numbered(files, ("train",), Path("f"))
    assert numbered(files, ("none", "test"), Path("f")) == files[-1:]
    with pytest.raises(InputError, match="starts with 'none' or 'nothing'"): numbered(files, ("none", "nothing"), Path("f"))


def png(*size, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(np.prod(size)).reshape(size).astype(np.uint8), mode).save(buffer, "png")
    return buffer.getvalue()


def test_pixels_come_channels_first_and_of_the_right_size():
    found = decode(png(2, 3, 3), "here", (3, 2, 3))
    assert found.shape == (3, 2, 3) and (found == np.arange(18).reshape(2, 3, 3).transpose(2, 0, 1)).all()
    assert decode(png(2, 3, mode="L"), "here", (1, 2, 3)).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    with pytest.raises(InputError, match="here has 3 x 2 pixels; it should have 2 x 3"): decode(png(2, 3, 3), "here", (3, 3, 2))


def test_parts_are_joined_in_their_order():
    one, two = (np.zeros((1, 2)), np.array([5])), (np.ones((2, 2)), np.array([6, 7]))
    assert joined([one])[1].tolist() == [5] and joined([one, two])[1].tolist() == [5, 6, 7] and joined([one, two])[0].sum() == 4


def test_labels_lie_between_the_first_and_the_last():
    assert check_labels(np.array([0, 9]), 10, "p").tolist() == [0, 9]
    for wrong in ([0, 10], [-1, 3]):
        with pytest.raises(InputError, match="from 0 to 9"): check_labels(np.array(wrong), 10, "p")
