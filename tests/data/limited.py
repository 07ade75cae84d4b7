"Reads files, each in a process of its own with little memory and time: `python limited.py` takes [[reader, path], …] and gives [[signal, what came of it], …]."
import json
import os
import resource
import signal
import sys
from pathlib import Path

os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others reserve far more than they use
import pyarrow.parquet  # before the memory is limited
from kdnb.data.files import Source, decode_all, read_shard
from kdnb.data.sets.cifar import read_batch
from kdnb.data.sets.fashion_mnist import read_idx
from kdnb.registry import InputError

SMALL = Source("small", "Small", ("cat", "dog"), (8, 4), (3, 8, 8), 1, True, "small", ("train",), ("test",), None, (), key="labels")
READERS = {"batch": lambda path: read_batch(path, SMALL), "shard": lambda path: read_shard(path, SMALL),
           "idx": lambda path: read_idx(path, 3, 12 * 64), "image": lambda path: decode_all([path], lambda i: str(path), SMALL.shape)}
MEMORY, SECONDS = 2**30, 60  # beyond what the imports take


def read(reader, path, out):
    "Reads one file and writes what came of it."
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    try: said = f"images {len(READERS[reader](Path(path)))}"
    except InputError as e: said = f"refused: {e}"
    except BaseException as e: said = f"{type(e).__name__}: {e}"
    os.write(out, said.encode(errors="replace")[:60000])


def apart(reader, path):
    "Gives the signal that ended a process which read a file, and what it wrote."
    reading, out = os.pipe()
    child = os.fork()
    if not child:
        try: read(reader, path, out)
        finally: os._exit(0)
    os.close(out)
    with open(reading, "rb") as file: said = file.read().decode()
    return os.WTERMSIG(os.waitpid(child, 0)[1]), said


if __name__ == "__main__":
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    json.dump([apart(*asked) for asked in json.load(sys.stdin)], sys.stdout)
