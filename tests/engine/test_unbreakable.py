"A table that is killed, shared between processes, out of memory or diverging ends with the numbers it should."
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kdnb.engine.execute as module
from interrupted import images, plan_of, small_plan
from kdnb.engine.execute import How, execute
from kdnb.engine.queue import closure
from kdnb.registry import InputError
from kdnb.store import Store, read_tensors

SCRIPT = Path(__file__).with_name("interrupted.py")
QUIET = How(live=False)
LIMIT = 3600  # seconds after which processes that hang are ended; twenty kills take one or two minutes on a quiet machine
CHANGING = ("seconds", "spent", "finished", "digest", "device", "commit")  # what two runs of one configuration may differ in


def numbers(folder):
    "Every result without what depends on the clock; the digest of a teacher's weights included."
    records = (json.loads(p.read_text()) for p in sorted((Path(folder)/"runs").glob("*.json")))
    return {r["key"]: {k: v for k, v in r.items() if k not in CHANGING} for r in records}


def begin(folder, *arguments):
    "A process that executes the small plan, or waits to be told where it ends."
    process = subprocess.Popen([sys.executable, SCRIPT, folder, *map(str, arguments)], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    process.watchdog = threading.Timer(LIMIT, lambda: os.killpg(process.pid, signal.SIGKILL))
    process.watchdog.daemon = True
    process.watchdog.start()
    return process


def finish(process):
    "What a process says until its end, and how it ended."
    output, _ = process.communicate()
    process.watchdog.cancel()
    return output, process.returncode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    "The results of three seeds."
    folder = tmp_path_factory.mktemp("uninterrupted")
    output, code = finish(begin(folder, "--seeds", 3))
    assert code == 0, output
    return numbers(folder)


def scores(plan, results): return {run.key: results[run.key]["scores"] for run in closure(plan.runs)}


def kills():
    "Twenty places, how often each is come to, and the signal: the same wherever this runs."
    chance = random.Random(0)
    files = [(f"{when} {kind}", chance.randint(1, 9) if kind == "unfinished" else 1)
             for when in ("before", "half", "after") for kind in ("unfinished", "weights", "runs")]
    steps = [("step", count) for count in chance.sample(range(1, 13), 10)]
    places = [*chance.sample(files + steps, 19), ("half caches", 1)]  # what is kept of a teacher's answers is written last
    signals = [chance.choice(["SIGKILL", "SIGTERM", "SIGINT"]) for _ in places]
    return [(place, count, "SIGKILL" if place.startswith("half") else name) for (place, count), name in zip(places, signals)]


def killed(killer, place, count, name):
    "A process that is killed at a place."
    print(place, count, name, file=killer.stdin, flush=True)
    said = []
    for line in iter(killer.stdout.readline, ""):
        said.append(line)
        if line.startswith("ended "): break
    assert said and said[-1] != "ended 0\n" and f"{name} at {place} {count}\n" in said, f"not killed at {place} {count}:\n{''.join(said)}"


def test_killed_at_twenty_places_it_ends_with_the_same_bits(tmp_path, uninterrupted):
    killer, written = begin(tmp_path, "--seeds", 3, "--each"), {}
    for kill in kills():
        killed(killer, *kill)
        now = {p.name: p.read_bytes() for p in (tmp_path/"runs").glob("*.json")}
        assert all(now[name] == content for name, content in written.items()), "a finished run is not trained twice"
        written = now
        Store(tmp_path).results()  # all that is written is whole: what cannot be read is an error
        for path in tmp_path.rglob("*.safetensors"): read_tensors(path)
    finish(killer)
    output, code = finish(begin(tmp_path, "--seeds", 3))
    assert code == 0 and len(set(kills())) == 20 and numbers(tmp_path) == uninterrupted, output


def test_two_processes_split_the_work(tmp_path):
    both = [begin(tmp_path, "--seeds", 4, "--hold") for _ in range(2)]
    for process in both:  # neither goes on before both have begun
        assert "holding\n" in iter(process.stdout.readline, ""), "it ended without training anything"
    for process in both: print(file=process.stdin, flush=True)
    outputs, codes = zip(*map(finish, both))
    assert codes == (0, 0), outputs
    assert len(numbers(tmp_path)) == len(closure(small_plan(4).runs))
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
    plan = small_plan()
    assert scores(plan, execute(plan, images, Store(tmp_path), QUIET)) == scores(plan, uninterrupted)


def test_out_of_memory_while_learners_are_made_makes_groups_smaller(tmp_path, monkeypatch, uninterrupted):
    real, made = module.start, []
    def start(run, *rest):
        made.append(run)
        if len(made) in (2, 6): raise MemoryError
        return real(run, *rest)
    monkeypatch.setattr(module, "start", start)
    plan = small_plan()
    assert scores(plan, execute(plan, images, Store(tmp_path), QUIET)) == scores(plan, uninterrupted)
    assert len(made) > len(closure(plan.runs))


def test_a_run_that_cannot_even_be_made_is_named(tmp_path, monkeypatch):
    run, real = small_plan().runs[0], module.start
    def start(asked, *rest):
        if asked.key == run.key: raise MemoryError
        return real(asked, *rest)
    monkeypatch.setattr(module, "start", start)
    with pytest.raises(InputError, match=r"does not fit into memory .MemoryError"): execute(plan_of(run), images, Store(tmp_path), QUIET)


def test_a_run_that_does_not_fit_is_named_and_the_others_survive(tmp_path, monkeypatch):
    plan = small_plan()
    monkeypatch.setattr(module, "train_epoch", fails({plan.runs[1].key}, 99))
    with pytest.raises(InputError, match=r"gram.*Tried to allocate 20.00 GiB.*smaller batch"): execute(plan, images, Store(tmp_path), QUIET)
    assert set(numbers(tmp_path)) == {run.key for run in closure(plan.runs)} - {plan.runs[1].key}


def test_a_divergence_is_an_outcome_and_the_table_goes_on(tmp_path):
    first, second = small_plan().runs[:2]
    wild = replace(first, terms=(replace(first.terms[0], weight=1e30),))
    results = execute(plan_of(wild, second), images, Store(tmp_path), QUIET)
    assert results[wild.key]["outcome"].startswith("NaN at epoch 1, step ") and results[wild.key]["scores"] == {}
    assert results[second.key]["outcome"] == "finished"


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, uninterrupted):
    plan, real, count = small_plan(), os.fsync, iter(range(10**6))
    def full(handle):
        if next(count) == 6: raise OSError(28, "No space left on device")
        real(handle)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(module, "CHECKPOINT", 0.0)
    with pytest.raises(InputError, match="No space left on device"): execute(plan, images, Store(tmp_path), QUIET)
    assert not list(tmp_path.rglob(".partial-*"))
    monkeypatch.undo()
    assert scores(plan, execute(plan, images, Store(tmp_path), QUIET)) == scores(plan, uninterrupted)


@pytest.mark.parametrize("kind", ["weights", "caches"])
def test_an_altered_tensor_file_is_never_used(tmp_path, kind):
    first, second = small_plan().runs[:2]
    execute(plan_of(first), images, Store(tmp_path), How(live=False, answers=True))
    path = next((tmp_path/kind).glob(f"{first.teacher.key}*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match=path.name): read_tensors(path)
    if kind == "weights":
        with pytest.raises(InputError, match=path.name): execute(plan_of(first, second), images, Store(tmp_path), How(live=False, answers=True))
    else:
        execute(plan_of(first, second), images, Store(tmp_path), How(live=False, answers=True))
