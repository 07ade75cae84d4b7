"What lies in a store is what was written there, or it is refused in one sentence that names the file."
import errno
import json
import math
import os
import shutil
import signal
from dataclasses import replace

import pytest
import safetensors
import safetensors.torch
import torch

import kdnb.engine.execute as module
import kdnb.engine.train as train
import kdnb.store as files
from kdnb.contract import Out
from kdnb.data.images import load_images
from kdnb.engine.execute import How, Session, Stop, Stopped, about_weights, cache_of, execute, load_net, start
from kdnb.engine.progress import Progress
from kdnb.engine.run import Entry, Phase, Plan, Run, Weighted, key_of
from kdnb.engine.train import Teachers
from kdnb.models.pretrained import network
from kdnb.registry import InputError
from kdnb.store import Store, digest_of, read_plan, read_result, read_tensors, sealed, write_tensors

IMAGES = load_images("digits").split(validation=100, train=128, test=100)
TEACHER = Run("resnet14", "ce", (Phase("classify", 2, 64, 0.05),), IMAGES.identity, 0)
STUDENT = replace(TEACHER, net="resnet8", terms=(Weighted("mse", 0.01, (("on", "embedding"),)),), teacher=TEACHER)
PLAN = Plan("toy", (Entry(STUDENT, "distilled", "mse", "resnet14", "resnet8"),), "quick", IMAGES.identity)
QUIET, KEPT = How(live=False), How(live=False, answers=True)
LIKE, PAGES = Out(torch.zeros(1, 10), torch.zeros(1, 64)), [(0, 0), (0, 1)]
KINDS = {"runs": STUDENT, "weights": TEACHER, "unfinished": STUDENT, "caches": TEACHER}


def finished(folder):
    "The results of the plan without what depends on the clock."
    found = execute(PLAN, IMAGES, Store(folder), KEPT)
    return {key: (r["history"], r["scores"], r["weights"], r["predictions"]) for key, r in found.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A store in which the student was stopped in its second epoch, and what uninterrupted training gives."
    folder, real, count = tmp_path_factory.mktemp("made"), train.step, iter(range(10**6))
    def step(learner, *arguments):
        real(learner, *arguments)
        if learner.run.key == STUDENT.key and next(count) == 2: signal.raise_signal(signal.SIGINT)
    train.step = step
    try:
        with pytest.raises(Stopped): execute(PLAN, IMAGES, Store(folder), QUIET)
    finally: train.step = real
    whole = tmp_path_factory.mktemp("whole")
    wanted = finished(whole)
    shutil.copy(Store(whole).path("runs", STUDENT.key), folder/"runs")
    shutil.copytree(whole/"caches", folder/"caches", dirs_exist_ok=True)
    return folder, wanted


def file_of(folder, kind):
    return next((folder/kind).glob(f"{KINDS[kind].key}*"))


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made[0], tmp_path/"store")
    return Store(tmp_path/"store")


def use(store, kind):
    "Reads a file as the engine does."
    session = Session(PLAN, IMAGES, store, QUIET, {}, Progress(1.0, 1, False), Stop())
    if kind == "runs": return store.results([STUDENT.key])[STUDENT.key]
    if kind == "weights": return load_net(TEACHER, store, IMAGES).state_dict()
    if kind == "caches": return sum(cache_of(STUDENT, ("embedding",), store, IMAGES, LIKE, PAGES).filled)
    return start(STUDENT, session, Teachers({TEACHER.key: network("resnet14", IMAGES)}), fresh=False).step


def contents(folder): return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuses(store, kind, said="", capsys=None):
    "Checks that a file is refused by its name in one sentence, and that nothing is changed by it."
    path, before = file_of(store.folder, kind), contents(store.folder)
    if kind == "caches":  # costs time and nothing else: it is told, and the answers are computed again
        capsys.readouterr()
        assert use(store, kind) == 0
        text = capsys.readouterr().out.removeprefix("teacher cache not used: ").strip()
    else:
        with pytest.raises(InputError) as caught: use(store, kind)
        text = str(caught.value)
    assert path.name in text and said in text and "\n" not in text and len(text.replace(str(path.parent), "")) <= 300
    assert any(word in text for word in ("Delete", "made again")) and contents(store.folder) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_damaged_is_read(store, kind):
    assert use(store, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 0.3, 0.7, -8, -1])
def test_a_file_cut_short_is_refused(store, kind, size, capsys):
    path = file_of(store.folder, kind)
    content = path.read_bytes()
    path.write_bytes(content[:int(size * len(content)) if isinstance(size, float) else size])
    if kind == "runs" and size == -1: assert use(store, kind)  # the last character is an empty line
    else: refuses(store, kind, capsys=capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", range(24))
def test_a_flipped_bit_is_refused_or_changes_nothing(store, kind, place, capsys):
    path, sound = file_of(store.folder, kind), use(store, kind)
    content = bytearray(path.read_bytes())
    at = place if place < 8 else 8 + (len(content) - 9) * (place - 8) // 15
    content[at] ^= 1 << place % 8
    path.write_bytes(bytes(content))
    if kind == "runs":  # JSON has characters that mean nothing
        try: assert use(store, kind) == sound
        except InputError: refuses(store, kind)
    else: refuses(store, kind, capsys=capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [b"", b"not JSON", b"[1, 2]", b"{}", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"\xff\xfe\x00", b"9" * 10_000], ids=range(9))
def test_another_content_is_refused(store, kind, text, capsys):
    file_of(store.folder, kind).write_bytes(text)
    refuses(store, kind, capsys=capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_a_file_s_place_is_refused(store, kind, capsys):
    path = file_of(store.folder, kind)
    path.unlink()
    path.mkdir()
    refuses(store, kind, capsys=capsys)


RESULTS = {
    "its key is another": lambda r: r | {"key": TEACHER.key},
    "its configuration is another": lambda r: r | {"config": r["config"] | {"seed": 1}},
    "its configuration is none": lambda r: r | {"config": {"net": "resnet8"}},
    "its configuration is a list": lambda r: r | {"config": [1]},
    "its teacher is another": lambda r: r | {"config": r["config"] | {"teacher": r["config"]["teacher"] | {"seed": 1}}},
    "a score is a word": lambda r: r | {"scores": {"top1": {"last": "99.0"}}},
    "a score is true": lambda r: r | {"scores": {"top1": {"last": True}}},
    "scores are a list": lambda r: r | {"scores": [99.0]},
    "predictions are cut": lambda r: r | {"predictions": r["predictions"] | {"zlib": r["predictions"]["zlib"][:8]}},
    "predictions are fewer": lambda r: r | {"predictions": r["predictions"] | {"images": 10**9}},
    "predictions are negative": lambda r: r | {"predictions": r["predictions"] | {"images": -1}},
    "predictions of no class": lambda r: r | {"predictions": r["predictions"] | {"classes": 3}},
    "predictions are a number": lambda r: r | {"predictions": 7},
    "another format": lambda r: r | {"schema": 1},
    "a field is missing": lambda r: {k: v for k, v in r.items() if k != "scores"},
}


@pytest.mark.parametrize("damage", RESULTS)
def test_a_wrong_result_is_refused_though_its_digest_is_right(store, damage):
    path = store.path("runs", STUDENT.key)
    record = RESULTS[damage]({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"})
    path.write_text(json.dumps(record | {"digest": digest_of(record)}))
    refuses(store, "runs")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_result_with_what_is_no_number_is_refused(store, value):
    path = store.path("runs", STUDENT.key)
    record = json.loads(path.read_text())
    record["scores"]["top1"]["last"] = float(value)
    del record["digest"]
    text = json.dumps(record | {"digest": digest_of(record)})
    path.write_text(text.replace("Infinity", value) if value == "1e999" else text)
    refuses(store, "runs")


def test_a_result_under_another_name_is_refused(store):
    shutil.copy(store.path("runs", TEACHER.key), store.path("runs", STUDENT.key))
    refuses(store, "runs", "holds the result")


def test_a_result_with_a_number_that_is_not_finite_is_not_written(store):
    before = contents(store.folder)
    with pytest.raises(InputError, match="is not written"): store.finish({"key": STUDENT.key, "config": {}, "scores": {"top1": {"last": math.nan}}})
    assert contents(store.folder) == before


def test_a_plan_under_another_name_is_refused(store):
    path = next((store.folder/"plans"/"toy").iterdir())
    plan = {k: v for k, v in json.loads(path.read_text()).items() if k != "digest"}
    path.write_bytes(sealed(plan | {"entries": []}))
    with pytest.raises(InputError, match=f"{path.name} is not the plan of its name"): store.plans("toy")
    path.write_bytes(sealed(plan | {"entries": [1]}))
    with pytest.raises(InputError, match=path.name): read_plan(path)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_file_out_of_reach_is_not_called_damaged(store, monkeypatch, number):
    "Whoever is told to delete it would lose what is sound."
    def refused(path, *rest, **more): raise OSError(number, os.strerror(number), str(path))
    monkeypatch.setattr(files.safetensors, "safe_open", refused)
    monkeypatch.setattr(files.Path, "read_text", refused)
    for read, kind in ((read_tensors, "weights"), (read_result, "runs")):
        with pytest.raises(InputError, match=f"{os.strerror(number)}. Nothing is lost") as caught: read(file_of(store.folder, kind))
        assert "Delete" not in str(caught.value)


# checkpoints

def history(about, **changes): return about | {"history": [about["history"][0] | changes, *about["history"][1:]]}


PLACES = {
    "another field": lambda a: a | {"share": 2.0},
    "a field is missing": lambda a: {k: v for k, v in a.items() if k != "spent"},
    "another epoch": lambda a: a | {"epoch": 0},
    "an epoch too far": lambda a: a | {"epoch": 2},
    "an epoch below": lambda a: a | {"epoch": -1},
    "an epoch that is true": lambda a: a | {"epoch": True},
    "a phase too far": lambda a: a | {"phase": 1},
    "a step too far": lambda a: a | {"step": 10**9},
    "a step that is a word": lambda a: a | {"step": "1"},
    "a time of a word": lambda a: a | {"spent": a["spent"] | {"students": "1"}},
    "a time before": lambda a: a | {"spent": a["spent"] | {"input": -1.0}},
    "a divergence": lambda a: a | {"diverged": "NaN at epoch 1, step 1"},
    "no history": lambda a: a | {"history": []},
    "a longer history": lambda a: a | {"history": a["history"] * 2},
    "a history of words": lambda a: a | {"history": ["99.0"]},
    "a loss of a word": lambda a: history(a, loss="0"),
    "a score of a word": lambda a: history(a, test={"top1": "99.0"}),
    "scores of a list": lambda a: history(a, test=[99.0]),
    "an epoch of another": lambda a: history(a, epoch=2),
    "a phase of another": lambda a: history(a, phase="linear"),
    "a field in the history": lambda a: history(a, more=1),
    "numbers of no parameter": lambda a: a | {"numbers": {"0.speed": 1.0}},
    "numbers of a list": lambda a: a | {"numbers": [1.0]},
}


@pytest.mark.parametrize("damage", PLACES)
def test_a_wrong_place_is_refused_though_its_digest_is_right(store, damage):
    path = store.path("unfinished", STUDENT.key)
    tensors, about, _ = read_tensors(path)
    write_tensors(path, tensors, about | {"state": PLACES[damage](about["state"])})
    refuses(store, "unfinished")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["input", "loss", "top1", "step"])
def test_a_checkpoint_with_what_is_no_number_is_refused(store, field, value):
    path = store.path("unfinished", STUDENT.key)
    tensors, about, _ = read_tensors(path)
    state = about["state"]
    changed = {"loss": lambda: history(state, loss=value), "top1": lambda: history(state, test={"top1": value}),
               "input": lambda: state | {"spent": state["spent"] | {"input": value}}}.get(field, lambda: state | {field: value})()
    write_tensors(path, tensors, about | {"state": changed})
    refuses(store, "unfinished")


@pytest.mark.parametrize("change", [{"history": "99.0"}, {"epoch": 0, "history": []}, {"spent": {}}], ids=str)
def test_the_digest_covers_position_and_history(store, change):
    "The tensors are those that were written, with their digest; the description is another."
    path = store.path("unfinished", STUDENT.key)
    with safetensors.safe_open(path, "pt") as file: header = file.metadata()
    tensors, about, _ = read_tensors(path)
    if change == {"history": "99.0"}: change = {"history": history(about["state"], test={"top1": 99.0})["history"]}
    text = json.dumps(about | {"state": about["state"] | change})
    path.write_bytes(safetensors.torch.save(tensors, header | {"about": text}))
    refuses(store, "unfinished", "does not hold what was written to it")


TENSORS = {
    "one more": lambda t: t | {"more": torch.ones(1)},
    "one more of the network": lambda t: t | {"net.more": torch.ones(1)},
    "one less": lambda t: {k: v for k, v in t.items() if k != "net.classifier.bias"},
    "another shape": lambda t: t | {"net.classifier.bias": torch.ones(11)},
    "another type": lambda t: t | {"net.classifier.bias": t["net.classifier.bias"].double()},
    "a memory of no parameter": lambda t: t | {"optimiser.999.momentum_buffer": torch.ones(1)},
    "a memory that is not known": lambda t: t | {"optimiser.0.speed": torch.ones(1)},
    "a memory without a name": lambda t: t | {"optimiser.x": torch.ones(1)},
    "a memory of another shape": lambda t: t | {"optimiser.0.momentum_buffer": torch.ones(1)},
    "a loss that is no number": lambda t: t | {"sum.loss": torch.tensor(math.nan)},
    "a divergence out of range": lambda t: t | {"sum.first_bad": torch.tensor(10**6)},
    "nothing": lambda t: {},
}


@pytest.mark.parametrize("damage", TENSORS)
def test_wrong_tensors_of_a_checkpoint_are_refused_though_their_digest_is_right(store, damage):
    path = store.path("unfinished", STUDENT.key)
    tensors, about, _ = read_tensors(path)
    write_tensors(path, TENSORS[damage](tensors), about)
    refuses(store, "unfinished")


def test_a_refused_checkpoint_is_deleted_and_the_run_ends_with_the_same_bits(store, made):
    path, result = store.path("unfinished", STUDENT.key), store.path("runs", STUDENT.key)
    result.unlink()
    path.write_bytes(b"")
    with pytest.raises(InputError, match=path.name): execute(PLAN, IMAGES, store, QUIET)
    assert path.read_bytes() == b""
    path.unlink()
    assert finished(store.folder) == made[1]


def test_a_sound_checkpoint_ends_with_the_same_bits(store, made):
    store.path("runs", STUDENT.key).unlink()
    assert finished(store.folder) == made[1]


# weights and caches

WEIGHTS = {
    "one more": lambda t: t | {"more": torch.ones(1)},
    "one less": lambda t: {k: v for k, v in t.items() if k != "classifier.bias"},
    "another shape": lambda t: t | {"classifier.bias": torch.ones(11)},
    "another type": lambda t: t | {"classifier.bias": t["classifier.bias"].half()},
    "what is no number": lambda t: t | {"classifier.bias": torch.full((10,), math.nan)},
    "what is infinite": lambda t: t | {"classifier.bias": torch.full((10,), math.inf)},
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_wrong_weights_are_refused_though_their_digest_is_right(store, damage):
    path = store.path("weights", TEACHER.key)
    tensors, about, _ = read_tensors(path)
    write_tensors(path, WEIGHTS[damage](tensors), about)
    refuses(store, "weights")


def test_weights_of_another_run_are_refused(store):
    write_tensors(store.path("weights", TEACHER.key), network("resnet14", IMAGES).state_dict(), about_weights(replace(TEACHER, seed=1)))
    refuses(store, "weights", "holds weights of the run")


CACHES = {
    "one more": lambda t: t | {"more": t["embedding"].clone()},
    "one less": lambda t: {k: v for k, v in t.items() if k != "embedding"},
    "no epochs": lambda t: {k: v for k, v in t.items() if k != "epochs"},
    "no sizes": lambda t: {k: v for k, v in t.items() if k != "filled"},
    "more than there are images": lambda t: t | {"filled": t["filled"] + 10**6},
    "less than none": lambda t: t | {"filled": t["filled"] - 10**6},
    "fewer sizes than epochs": lambda t: t | {"filled": t["filled"][1:].clone()},
    "an epoch twice": lambda t: t | {"epochs": t["epochs"] * 0},
    "epochs without seed": lambda t: t | {"epochs": t["epochs"][:, 0].clone()},
    "another shape": lambda t: t | {"embedding": t["embedding"][1:].contiguous()},
    "another type": lambda t: t | {"embedding": t["embedding"].float()},
    "epochs of another type": lambda t: t | {"epochs": t["epochs"].float()},
    "sizes of another type": lambda t: t | {"filled": t["filled"].float()},
    "what is no number": lambda t: t | {"embedding": t["embedding"] * math.nan},
}


@pytest.mark.parametrize("damage", CACHES)
def test_a_wrong_cache_is_told_and_not_used_though_its_digest_is_right(store, damage, capsys):
    path = file_of(store.folder, "caches")
    tensors, about, _ = read_tensors(path)
    write_tensors(path, CACHES[damage](tensors), about)
    refuses(store, "caches", capsys=capsys)


def test_a_cache_that_is_not_used_is_made_again(store, made, capsys):
    path = file_of(store.folder, "caches")
    for kind in ("runs", "unfinished"): store.path(kind, STUDENT.key).unlink()
    path.write_bytes(b"")
    assert finished(store.folder) == made[1] and path.name in capsys.readouterr().out
    assert read_tensors(path)[0]["filled"].tolist() == [128, 128]


def test_results_of_schema_2_are_read(store):
    "Written by hand, as an earlier version wrote them: nothing is asked of them that they did not have."
    config = replace(STUDENT, seed=5).config
    record = {"schema": 2, "key": key_of(config), "config": config, "scores": {"top1": {"last": 90.0}}, "more": None}
    path = store.path("runs", record["key"])
    path.write_text(json.dumps(record | {"digest": digest_of(record)}, indent=1) + "\n")
    assert read_result(path)["scores"] == record["scores"]


@pytest.mark.parametrize("kind", ["runs", "unfinished"])
def test_a_folder_where_a_file_is_to_be_written_is_one_sentence(store, kind):
    path = store.path("runs", STUDENT.key)
    record = json.loads(path.read_text())
    store.path(kind, STUDENT.key).unlink()
    store.path(kind, STUDENT.key).mkdir()
    with pytest.raises(InputError) as caught: store.finish(record)
    assert STUDENT.key in str(caught.value) and "ove" in str(caught.value) and "\n" not in str(caught.value)
    assert not [p for p in store.folder.rglob(".partial-*")]


def test_out_of_memory_of_onednn_is_out_of_memory(tmp_path, monkeypatch):
    "It makes groups smaller, too, and a run that does not fit alone is named."
    real = module.train_epoch
    def epoch(group, *rest):
        if group[0].run.key == STUDENT.key: raise RuntimeError("could not create a primitive")
        return real(group, *rest)
    monkeypatch.setattr(module, "train_epoch", epoch)
    with pytest.raises(InputError, match="does not fit into memory .could not create a primitive"): execute(PLAN, IMAGES, Store(tmp_path), QUIET)
    assert Store(tmp_path).results().keys() == {TEACHER.key}
