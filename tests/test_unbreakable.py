"A table that is killed, shared between processes, out of memory or diverging ends with the numbers it should."
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kdnb.engine.execute as module
from interrupted import images, small_plan
from kdnb.engine.execute import closure, execute
from kdnb.registry import InputError
from kdnb.store import Store, read_tensors

SCRIPT = Path(__file__).with_name("interrupted.py")
CHANGING = ("seconds", "finished", "digest", "device", "commit")  # what two runs of one configuration may differ in


def numbers(folder):
    "Every result without what depends on the clock; the digest of a teacher's weights included."
    records = (json.loads(p.read_text()) for p in sorted((Path(folder)/"runs").glob("*.json")))
    return {r["key"]: {k: v for k, v in r.items() if k not in CHANGING} for r in records}


def begin(folder, *arguments):
    return subprocess.Popen([sys.executable, SCRIPT, folder, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def launch(folder, *arguments):
    process = begin(folder, *arguments)
    assert process.stdout.readline() == "started\n", process.stdout.read()
    return process


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = launch(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return numbers(folder)


def test_killed_at_twenty_points_it_ends_with_the_same_bits(tmp_path, uninterrupted):
    chance, kills, written = random.Random(0), 0, {}
    while kills < 20:
        process = launch(tmp_path, 0.0)
        time.sleep(chance.uniform(0.1, 1.2))
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT]))
        output, _ = process.communicate(timeout=60)
        if process.returncode == 0: break
        kills += 1
        now = {p.name: p.read_bytes() for p in (tmp_path/"runs").glob("*.json")}
        assert all(now[name] == content for name, content in written.items()), "a finished run is not trained twice"
        written = now
    assert kills == 20, f"the plan was only killed {kills} times"
    output, _ = launch(tmp_path).communicate(timeout=300)
    assert numbers(tmp_path) == uninterrupted, output


def test_two_processes_split_the_work(tmp_path):
    both = [begin(tmp_path, 30, 4), begin(tmp_path, 30, 4)]
    outputs = [process.communicate(timeout=400)[0] for process in both]
    assert all(process.returncode == 0 for process in both), outputs
    assert len(numbers(tmp_path)) == len(closure(small_plan(4)))
    lines = [{line for line in output.splitlines() if " 1/" in line} for output in outputs]
    assert all(lines), "both trained something"
    assert not {l.rsplit(",", 1)[0] for l in lines[0]} & {l.rsplit(",", 1)[0] for l in lines[1]}, "and nothing was trained twice"


def fails(runs, times):
    "A step that runs out of memory while a group holds more than so many runs, or one of these runs."
    real = module.train_epoch
    def epoch(group, *rest):
        if len(group) > times or any(learner.run.key in runs for learner in group):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. Of the allocated memory")
        return real(group, *rest)
    return epoch


def test_out_of_memory_makes_groups_smaller(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setattr(module, "train_epoch", fails((), 2))
    execute(small_plan(), images, Store(tmp_path), live=False)
    assert {k: r["last"] for k, r in numbers(tmp_path).items()} == {k: r["last"] for k, r in uninterrupted.items()}


def test_a_run_that_does_not_fit_is_named_and_the_others_survive(tmp_path, monkeypatch):
    plan = small_plan()
    monkeypatch.setattr(module, "train_epoch", fails({plan[1].key}, 99))
    with pytest.raises(InputError, match=r"gram.*Tried to allocate 20.00 GiB.*smaller batch"): execute(plan, images, Store(tmp_path), live=False)
    assert set(numbers(tmp_path)) == {run.key for run in closure(plan)} - {plan[1].key}


def test_a_divergence_is_an_outcome_and_the_table_goes_on(tmp_path):
    plan = small_plan()
    wild = replace(plan[0], parts=(replace(plan[0].parts[0], alpha=1e30),))
    results = execute([wild, plan[1]], images, Store(tmp_path), live=False)
    assert results[wild.key]["outcome"].startswith("NaN at epoch 1, step ") and results[wild.key]["last"] is None
    assert results[plan[1].key]["outcome"] == "finished"


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, uninterrupted):
    import os
    plan, real, count = small_plan(), os.fsync, iter(range(10**6))
    def full(handle):
        if next(count) == 6: raise OSError(28, "No space left on device")
        real(handle)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(module, "CHECKPOINT", 0.0)
    with pytest.raises(InputError, match="No space left on device"): execute(plan, images, Store(tmp_path), live=False)
    assert not list(tmp_path.rglob(".partial-*"))
    monkeypatch.undo()
    execute(plan, images, Store(tmp_path), live=False)
    assert {k: r["last"] for k, r in numbers(tmp_path).items()} == {k: r["last"] for k, r in uninterrupted.items()}


@pytest.mark.parametrize("kind", ["weights", "cache"])
def test_an_altered_tensor_file_is_never_used(tmp_path, kind):
    plan = small_plan()
    execute(plan[:1], images, Store(tmp_path), live=False)
    path = next((tmp_path/kind).glob(f"{plan[0].teacher.key}*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match=path.name): read_tensors(path)
    if kind == "weights":
        with pytest.raises(InputError, match=path.name): execute(plan[:2], images, Store(tmp_path), live=False)
    else:
        execute(plan[:2], images, Store(tmp_path), live=False)
