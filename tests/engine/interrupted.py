"""A small plan, executed in a process that ends, or waits, at a counted place and never at a time.

`python tests/engine/interrupted.py FOLDER --kill PLACE COUNT SIGNAL` sends itself the signal when it comes to the place for the COUNT-th time: "step",
after a step of one run, or "before", "half" or "after" the writing of a file, with the file's kind ("half unfinished" is amid a checkpoint).
With `--each` every line of its standard input is a place, a count and a signal for a process of its own, whose end is told.
With `--hold` it waits at its first step for a line on its standard input. `--lease` is how long a claim lasts without a touch, in seconds."""
import argparse
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import kdnb.engine.execute as module
import kdnb.engine.train as train
import kdnb.store as store
from kdnb.data.images import load_images
from kdnb.engine.run import Entry, Phase, Plan, Run, Weighted

images = load_images("digits").split(validation=100, train=512, test=100)


def small_plan(seeds=1, epochs=3):
    "A CE and a SupCon teacher, and students of both with projectors and without, for each seed."
    losses = [Weighted("mse", 0.01, (("on", "embedding"),)), Weighted("gram", 1e-6), Weighted("supcon", 0.01)]
    runs = []
    for seed in range(seeds):
        classify = Phase("classify", epochs, 64, 0.05, warmup=0.2)
        teacher = Run("resnet14", "ce", (classify,), images.identity, seed)
        supcon = replace(teacher, objective="supcon", phases=(Phase("contrast", 2, 64, 0.05), Phase("linear", 1, 64, 0.5)))
        runs += [replace(teacher, net="resnet8", terms=(term,), teacher=t) for t in (teacher, supcon) for term in losses]
    return plan_of(*runs)


def plan_of(*runs):
    "A plan of these runs, all of them distilled."
    return Plan("toy", tuple(Entry(run, "distilled", run.method, "resnet14", "resnet8") for run in runs), "quick", images.identity)


def watch(at):
    "Calls `at` with the name of every place; amid a file, also with its handle. These are all the hooks into the engine."
    step, write, fsync, kind = train.step, store.write_whole, os.fsync, ""

    def stepped(*arguments):
        at("begin")
        step(*arguments)
        at("step")

    def written(path, content):
        nonlocal kind
        kind = Path(path).parent.name
        at(f"before {kind}")
        write(path, content)
        at(f"after {kind}")

    def synced(handle):
        at(f"half {kind}", handle)
        fsync(handle)

    train.step, store.write_whole, os.fsync = stepped, written, synced


def kill_at(place, count, name):
    "Sends this process a signal at a place; a file that it is writing is left half as long."
    seen = Counter()

    def at(here, handle=None):
        seen[here] += 1
        if (here, seen[here]) != (place, int(count)): return
        if handle is not None: os.ftruncate(handle, os.fstat(handle).st_size // 2)
        print(f"{name} at {here} {count}", flush=True)
        os.kill(os.getpid(), signal.Signals[name])
    return at


def hold():
    "Waits for a line at the first step."
    seen = Counter()

    def at(here, handle=None):
        seen[here] += 1
        if (here, seen[here]) != ("begin", 1): return
        print("holding", flush=True)
        input()
    return at


def each():
    "Place, count and signal of every line, in a child process that goes on with them while the parent waits to tell how it ended."
    for line in sys.stdin:
        child = os.fork()
        if not child: return line.rsplit(maxsplit=2)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    ask = argparse.ArgumentParser()
    ask.add_argument("folder", type=Path)
    ask.add_argument("--seeds", type=int, default=1)
    ask.add_argument("--epochs", type=int, default=3)
    ask.add_argument("--lease", type=float, default=store.LEASE)
    ask.add_argument("--kill", nargs=3)
    ask.add_argument("--each", action="store_true")
    ask.add_argument("--hold", action="store_true")
    asked = ask.parse_args()
    if asked.each: asked.kill = each()
    if asked.kill:
        watch(kill_at(*asked.kill))
        module.CHECKPOINT = 0.0  # one after every step
    if asked.hold: watch(hold())
    store.LEASE = asked.lease
    module.execute(small_plan(asked.seeds, asked.epochs), images, store.Store(asked.folder), module.How(answers=True))
