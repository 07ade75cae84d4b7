"A small plan, executed: `python tests/interrupted.py FOLDER [SECONDS between checkpoints]`. Prints a line when training starts."
import sys
from dataclasses import replace
from pathlib import Path

import kdnb.engine.execute as module
from kdnb.data.images import load_images
from kdnb.engine.run import Phase, Run, describe, part
from kdnb.store import Store

images = load_images("digits").split(validation=100, train=512, test=100)


def small_plan(seeds=1, epochs=3):
    "A CE and a SupCon teacher, and students of both with projectors and without, for each seed."
    runs = []
    for seed in range(seeds):
        classify = Phase("classify", epochs, 64, 0.05, warmup=0.2)
        teacher = Run("resnet14", "ce", (classify,), describe(images), seed)
        supcon = replace(teacher, objective="supcon", phases=(Phase("contrast", 2, 64, 0.05), Phase("linear", 1, 64, 0.5)))
        student = Run("resnet8", "ce", (classify,), describe(images), seed)
        losses = [part("mse", 0.01, {"on": "embedding"}), part("gram", 1e-6, {}), part("supcon", 0.01, {})]
        runs += [replace(student, parts=(p,), teacher=t) for t in (teacher, supcon) for p in losses]
    return runs


if __name__ == "__main__":
    if len(sys.argv) > 2: module.CHECKPOINT = float(sys.argv[2])
    seeds = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    print("started", flush=True)
    module.execute(small_plan(seeds), images, Store(Path(sys.argv[1])))
    print("done", flush=True)
