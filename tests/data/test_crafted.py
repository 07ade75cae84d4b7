"A file that was made to do harm runs nothing, crashes nothing and fills nothing: each ends in one sentence, with little memory and in little time."
import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from limited import SMALL

x = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
Y = [0, 1, 1, 0]
TWO, FOUR = b"\x80\x02", b"\x80\x04"


def word(text): return b"U" + bytes([len(text)]) + text


def batch(data, labels=b"](K\x00K\x01K\x01K\x00e", start=TWO): return start + b"}(" + word(b"data") + data + word(b"labels") + labels + b"u."


def kind(code=b"u1", state=b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"): return b"cnumpy\ndtype\n" + word(code) + b"K\x00K\x01\x87R" + state


def array(shape=b"K\x04K\xc0\x86", kind=kind(), content=x.tobytes(), size=None):
    content = b"T" + struct.pack("<I", len(content) if size is None else size) + content
    return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + kind + b"\x89" + content + b"tb"


def long4(number): return b"\x8b" + struct.pack("<i", number)


GOOD = batch(array())
FIELDS = b"(K\x03U\x01|N(U\x01atU\x01a}" + word(b"a") + kind(b"O8", b"") + b"K\x00\x86sK\x08K\x01K\x3ftb"
HIDDEN = b"(K\x03U\x01|NNNK\x08K\x08K\x3ftb"  # a flag that says: this holds objects
DEEP = 300_000
PICKLES = {
    "a call": b"cos\nsystem\nU\x04true\x85R.", "a call in a batch": batch(b"cos\nsystem\nU\x04true\x85R"),
    "a call by texts": FOUR + b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "eval": batch(b"c__builtin__\neval\nU\x011\x85R"),
    "another function of numpy": batch(b"cnumpy\nload\nU\x01a\x85R"), "an attribute of a permitted module": batch(b"c_codecs\ndecode\nU\x01a\x85R"),
    "an instance": TWO + b"(U\x04trueios\nsystem\n.", "an object": TWO + b"(cos\nsystem\nU\x04trueo.", "a new object": TWO + b"cos\nsystem\n)\x81.",
    "a new permitted object": TWO + b"cnumpy\nndarray\nK\x08\x85\x81.", "a new object with names": FOUR + b"cnumpy\nndarray\n)}\x92.",
    "extension 1": TWO + b"\x82\x01.", "extension 2": TWO + b"\x83\x01\x00.", "extension 4": TWO + b"\x84\x01\x00\x00\x00.",
    "a persistent name": TWO + b"Pname\n.", "a persistent value": TWO + b"K\x01Q.", "a buffer from elsewhere": b"\x80\x05\x97.",
    "another encoding": batch(b"c_codecs\nencode\nU\x01a" + word(b"rot13") + b"\x86R"),
    "objects": batch(array(b"K\x01\x85", kind(b"O8"), b"\x10" * 8)), "objects in a field": batch(array(b"K\x01\x85", kind(b"V8", FIELDS), b"\x10" * 8)),
    "objects behind a flag": batch(array(b"K\x01\x85", kind(b"V8", HIDDEN), b"\x10" * 8)), "objects in labels": batch(array(), array(b"K\x04\x85", kind(b"O8"), b"\x10" * 32)),
    "bytes behind an object's flag": batch(array(kind=kind(b"u1", HIDDEN), content=b"")), "a type without a state": batch(array(kind=b"cnumpy\ndtype\n")),
    "a type that is text": batch(array(kind=word(b"u1"))), "text": batch(array(kind=kind(b"S8"))), "dates": batch(array(kind=kind(b"M8"))),
    "floats": batch(array(b"K\x02K\xc0\x86", kind(b"f2"))), "large whole numbers": batch(array(b"K\x02K\xc0\x86", kind(b"u2"))),
    "signed bytes": batch(array(kind=kind(b"i1"))), "truth values": batch(array(kind=kind(b"b1"))),
    "a huge shape": batch(array(b"\x8a\x06" + b"\x00" * 5 + b"\x10K\xc0\x86")), "a shape that overflows": batch(array((b"\x8a\x08" + b"\x00" * 7 + b"\x10") * 2 + b"\x86")),
    "a negative shape": batch(array(b"J\xfc\xff\xff\xffJ\x40\xff\xff\xff\x86")), "a shape of tuples": batch(array(b"))\x86")), "a shape of many numbers": batch(array(b"(" + b"K\x01" * 99 + b"t")),
    "a deep shape": batch(array(b")" + b"\x85" * DEEP)), "another order of colours": batch(array(b"(K\x04K\x08K\x08K\x03t")),
    "too few bytes": batch(array(content=x.tobytes()[:-1])), "no bytes": batch(array(content=b"")), "labels in two dimensions": batch(array(), array(b"K\x04K\x01\x86", content=b"\0\1\1\0")),
    "nested labels": batch(array(), b"](" + b"](K\x00e" * 4 + b"e"), "labels of floats": batch(array(), b"](" + (b"G" + bytes(8)) * 4 + b"e"),
    "true labels": batch(array(), b"](\x88\x88\x89\x89e"), "a label without end": batch(array(), b"](\x8a\xff" + b"\x7f" * 255 + b"e"),
    "a label of 2**63": batch(array(), b"](K\x00K\x00K\x00\x8a\x09" + bytes(7) + b"\x80\x00e"), "a label out of range": batch(array(), b"](K\x00K\x01K\x02K\x00e"),
    "a negative length": TWO + long4(-1) + b".", "a long number": TWO + long4(10**5) + b"\x7f" * 10**5 + b".", "text of negative length": TWO + b"T\xff\xff\xff\xff.",
    "bytes of 4 GB": b"\x80\x03B\xff\xff\xff\xff.", "bytes of 2**63": FOUR + b"\x8e" + b"\xff" * 7 + b"\x7f.", "text of 2**64": FOUR + b"\x8d" + b"\xff" * 8 + b".",
    "a byte array of 2**60": b"\x80\x05\x96" + bytes(7) + b"\x10.", "a large frame": FOUR + b"\x95" + b"\xff" * 8 + b"N.", "an array of 4 GB": batch(array(size=2**32 - 1)),
    "a memo of 4 billion": TWO + b"Nr\xff\xff\xff\xff.", "many memos": TWO + b"N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(DEEP)) + b".",
    "nothing remembered": TWO + b"h\x01.", "nothing to remember": TWO + b"q\x01.", "nothing to take": TWO + b".", "nothing to put in a tuple": TWO + b"K\x01\x86.",
    "no mark": TWO + b"t.", "values below a mark": TWO + b"](a.", "nothing to fill": TWO + b"(K\x01e.", "a tuple to fill": TWO + b")K\x01a.", "a list as a dictionary": TWO + b"](K\x01K\x01u.",
    "deep tuples": batch(b")" + b"\x85" * DEEP), "deep lists": batch(b"]" * DEEP + b"a" * (DEEP - 1)), "deep dictionaries": batch(b"}" + (word(b"a") + b"}") * DEEP + b"s" * DEEP),
    "deep marks": TWO + b"(" * DEEP + b".", "a deep key": TWO + b"}(" + b")" + b"\x85" * DEEP + b"Nu.", "a key that doubles": TWO + b"}()" + b"q\x00h\x00\x86" * 200 + b"Nu.",
    "a tuple that doubles": batch(b")" + b"q\x00h\x00\x86" * 200), "labels that double": batch(array(), b")" + b"q\x00h\x00\x86" * 200),
    "a list in itself": batch(b"]q\x00h\x00a"), "labels in themselves": batch(array(), b"]q\x00(h\x00h\x00h\x00h\x00e"), "a dictionary in itself": TWO + b"}q\x00" + word(b"data") + b"h\x00s.",
    "deep calls": batch(b"c_codecs\nencode\nq\x00" + b"h\x00" * DEEP + b")R" + b"\x85R" * (DEEP - 1)), "millions of lists": TWO + b"(" + b"]" * 3_000_000 + b"t.",
    "millions of nothings": TWO + b"N" * 3_000_000 + b".", "a text encoded often": batch(array(), b"](c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**5) + b"a" * 10**5 + word(b"latin1") + b"\x86q\x01R" + b"h\x00h\x01R" * 50_000 + b"e"),
    "text outside latin1": batch(array(content=b"").replace(b"T" + bytes(4), b"c_codecs\nencode\nX\x04\x00\x00\x00\xf0\x9f\x98\x80" + word(b"latin1") + b"\x86R")),
    "no text": FOUR + b"\x8c\x02\xff\xff.", "a key twice": TWO + b"}(" + (word(b"data") + array()) * 2 + word(b"labels") + b"]u.", "both kinds of one key": b"\x80\x03}(U\x04dataNX\x04\x00\x00\x00dataNu.",
    "a key without a value": TWO + b"}(" + word(b"data") + b"u.", "a list as a key": TWO + b"}(]Nu.", "a number as a key": TWO + b"}(K\x01Nu.", "a long key": TWO + b"}(T\x00\x00\x01\x00" + b"a" * 2**16 + b"Nu.",
    "a state for a list": TWO + b"]}b.", "a state for a dictionary": TWO + b"}}b.", "two states": batch(kind() + b")b"), "a call of a list": TWO + b"])R.", "a call of a result": TWO + kind() + b")R.",
    "a call without arguments": TWO + b"cnumpy\ndtype\n]R.", "an array without anything": batch(b"cnumpy.core.multiarray\n_reconstruct\n)R"), "a function as an array": batch(b"cnumpy\ndtype\n"),
    "a name without end": TWO + b"c" + b"a" * 10**6, "a name of control characters": FOUR + b"\x8c\x05a\nb\x1b[\x8c\x01c\x93.", "an unknown instruction": TWO + b"\xff.",
    "an empty file": b"", "only a protocol": TWO, "no pickle": b"text", "a pickle of protocol 0": b"(dp0\n.", "a pickle of protocol 9": b"\x80\x09N.", "a number": TWO + b"K\x01.", "no data": TWO + b"}.",
    "a view of 2**60": batch(b"cnumpy.core.numeric\n_frombuffer\n(U\x01a" + kind() + b"\x8a\x08" + bytes(7) + b"\x10\x85U\x01CtR", start=FOUR),
    "two instructions cut": GOOD[:-2], "the middle cut": GOOD[:100] + GOOD[300:], "negative numbers of bytes": batch(array(b"J\xff\xff\xff\xff\x85", content=b"")),
}


def png(width, height, depth=8, colour=2, more=b""):
    "A PNG file that says it has so many pixels, all black, in few bytes."
    def chunk(name, content): return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    compress = zlib.compressobj(9)
    rows = b"".join(compress.compress(bytes(1 + width * channels * depth // 8)) for _ in range(height)) + compress.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def encoded(image, encoding, **options):
    image.save(buffer := io.BytesIO(), encoding, **options)
    return buffer.getvalue()


LARGE, FRAMES = Image.new("RGB", (3000, 3000)), [Image.fromarray(image.transpose(1, 2, 0)) for image in x]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%touch /tmp/run) (w) file\nshowpage\n%%EOF\n"
PICTURES = {
    "a large PNG": png(9000, 6000), "a large PNG of 16 bits": png(4000, 4000, 16), "a large JPEG": encoded(LARGE, "jpeg"), "a large WebP": encoded(LARGE, "webp", quality=0, method=0),
    "a PNG of 2**31": png(8, 8).replace(struct.pack(">2I", 8, 8), struct.pack(">2I", 2**31 - 1, 2**31 - 1)), "EPS": EPS, "another EPS": b"\xc5\xd0\xd3\xc6" + struct.pack("<2I", 32, len(EPS)) + bytes(20) + EPS,
    **{encoding: encoded(FRAMES[0], encoding) for encoding in ("gif", "bmp", "tiff", "ppm", "ico", "pcx", "sgi", "tga", "jpeg2000")},
    "16 bits of grey": png(8, 8, 16, 0), "16 bits of colours": png(8, 8, 16), "16 bits with alpha": png(8, 8, 16, 6), "transparency": png(8, 8, 8, 6),
    "CMYK": encoded(FRAMES[0].convert("CMYK"), "jpeg"), "an animated PNG": encoded(FRAMES[0], "png", save_all=True, append_images=FRAMES[1:]),
    "an animated WebP": encoded(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:]), "float TIFF": encoded(Image.new("F", (8, 8)), "tiff"),
    "a PNG after a megabyte": encoded(FRAMES[0], "png") + bytes(2**21), "no picture": b"text", "nothing": b"", "half a PNG": encoded(FRAMES[0], "png")[:90],
}


def shard(pictures=(), **other):
    "A parquet shard with these pictures, or with other columns."
    rows = pyarrow.array([{"bytes": data, "path": ""} for data in pictures], pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}))
    table = pyarrow.table({"image": rows, "label": [0] * len(pictures)} | other)
    pyarrow.parquet.write_table(table, buffer := io.BytesIO(), compression="zstd")
    return buffer.getvalue()


HONEST = [encoded(image, "png") for image in FRAMES]
SHARDS = {
    "six large pictures": shard([png(9000, 6000)] * 6), "one large picture in every row": shard([encoded(FRAMES[0], "png") + bytes(2**25)] * 12),
    "nested labels": shard(HONEST, label=[[0], [1], [0], [1]]), "labels of structs": shard(HONEST, label=[{"a": 0}] * 4), "labels of floats": shard(HONEST, label=[0.0, 1, 0, 1]),
    "labels of text": shard(HONEST, label=["0", "1", "0", "1"]), "true labels": shard(HONEST, label=[True, False] * 2), "no labels": shard(HONEST, label=[None, 0, 1, 0]),
    "labels out of range": shard(HONEST, label=[0, 1, 2, 0]), "large labels": shard(HONEST, label=pyarrow.array([0, 1, 1, 2**64 - 1], pyarrow.uint64())),
    "pictures as text": shard(HONEST, image=pyarrow.array([{"bytes": "a"}] * 4)), "pictures as lists": shard(HONEST, image=pyarrow.array([{"bytes": [1, 2]}] * 4)),
    "no pictures": shard([None] * 4), "more rows than images": shard([HONEST[0]] * 13), "pictures of several sizes": shard([HONEST[0], encoded(FRAMES[0].resize((9, 8)), "png")]),
    "EPS in a row": shard([HONEST[0], EPS]), "a deep column": shard(HONEST, label=pyarrow.array([[[[[0]]]]] * 4)), "half a file": shard(HONEST)[:-200], "another file": b"PAR1" * 10,
}


def idx(*shape, content=b""): return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + content


IDX = {
    "a bomb.gz": gzip.compress(idx(4, 8, 8)) + gzip.compress(bytes(10**7)) * 200, "4 GB each way.gz": gzip.compress(idx(*[2**32 - 1] * 3)), "4 GB each way": idx(*[2**32 - 1] * 3),
    "fewer": idx(4, 8, 8, content=bytes(255)), "more": idx(4, 8, 8, content=bytes(257)), "too many": idx(13, 8, 8, content=bytes(13 * 64)), 
    "no gz.gz": idx(1, 8, 8, content=bytes(64)), "half.gz": gzip.compress(idx(4, 8, 8, content=x.tobytes()[:256]))[:-20], "a wrong sum.gz": gzip.compress(idx(1, 8, 8, content=bytes(64)))[:-8] + bytes(8),
    "nothing": b"", "nothing.gz": b"", "the wrong dimensions": idx(64, content=bytes(64)),
}
CRAFTED = {"batch": PICKLES, "image": PICTURES, "shard": SHARDS, "idx": IDX}
ASKED = [(reader, name) for reader, files in CRAFTED.items() for name in files]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    "What comes of each crafted file, read with little memory and time."
    folder, asked = tmp_path_factory.mktemp("crafted"), []
    for i, (reader, name) in enumerate(ASKED):
        path = folder/f"{i}{Path(name).suffix}"
        path.write_bytes(CRAFTED[reader][name])
        asked.append([reader, str(path)])
    done = subprocess.run([sys.executable, Path(__file__).with_name("limited.py")], input=json.dumps(asked), capture_output=True, text=True, timeout=1200, check=True)
    return {key: (path, *came) for key, (_, path), came in zip(ASKED, asked, json.loads(done.stdout))}


@pytest.mark.parametrize("reader,name", ASKED)
def test_a_crafted_file_is_refused_in_one_sentence(outcomes, reader, name):
    path, signal, said = outcomes[reader, name]
    assert signal == 0 and said.startswith("refused: ") and path in said and "MemoryError" not in said
    assert "\n" not in said and said.isprintable() and len(said) - len(path) < 300


def test_honest_files_are_read_with_as_little(tmp_path):
    files = {"batch": GOOD, "image": HONEST[0], "shard": shard(HONEST), "idx": idx(1, 8, 8, content=bytes(64))}
    for name, content in files.items(): (tmp_path/name).write_bytes(content)
    asked = [[name, str(tmp_path/name)] for name in files]
    done = subprocess.run([sys.executable, Path(__file__).with_name("limited.py")], input=json.dumps(asked), capture_output=True, text=True, timeout=1200, check=True)
    assert [came[1] for came in json.loads(done.stdout)] == ["images 2", "images 1", "images 2", "images 1"]
