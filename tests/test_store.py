"What a store writes and what it refuses to read."
import json
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from kdnb.engine.run import key_of
from kdnb.registry import InputError
from kdnb.store import ROOT, Store, digest_of, packed, predictions, read_record, read_tensors, sealed, shown, tensor_digest, write_tensors, write_whole

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, -1]), "c": torch.tensor(True)}


def record(**more): return {"key": "k", "config": {}, "scores": {}, **more}


def test_a_digest_is_that_of_the_compact_json_in_order():
    assert digest_of({"b": 1, "a": [1.5, None]}) == digest_of({"a": [1.5, None], "b": 1}) != digest_of({"a": [1.5, None], "b": 2})
    assert digest_of({"b": 1, "a": 2}) == "d3626ac30a87e6f7a6428233b3c68299976865fa5508e4267c5415c76af7a772"


def test_a_file_is_whole_readable_by_all_and_alone(tmp_path):
    path = tmp_path/"new"/"folder"/"file"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second" and list(path.parent.iterdir()) == [path] and stat.S_IMODE(path.stat().st_mode) == 0o644


def test_where_nothing_can_be_written_nothing_is_left(tmp_path, monkeypatch):
    (tmp_path/"file").write_text("")
    with pytest.raises(InputError, match="cannot be written: "): write_whole(tmp_path/"file"/"below", b"")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("for a reason")))
    with pytest.raises(InputError, match="cannot be written: for a reason. Free the disk"): write_whole(tmp_path/"other", b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_digest_tells_tensors_apart_by_name_shape_type_and_bytes():
    marks = [tensor_digest(t) for t in (
        {"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3, dtype=torch.int32)}, {"a": torch.ones(2, 3)})]
    assert len(set(marks)) == 5
    assert tensor_digest(TENSORS) == tensor_digest(dict(reversed(TENSORS.items())))


def test_tensors_come_back_as_they_were_written(tmp_path):
    mark = write_tensors(tmp_path/"t", TENSORS | {"d": torch.arange(6.).view(2, 3).T}, {"what": 1})
    tensors, about, found = read_tensors(tmp_path/"t")
    assert about == {"what": 1} and found == mark == tensor_digest(tensors) and tensors["d"].equal(torch.arange(6.).view(2, 3).T)
    assert all(tensors[name].equal(value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items())


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64])
def test_tensors_that_are_not_those_written_are_refused(tmp_path, digest):
    (tmp_path/"t").write_bytes(safetensors.torch.save(TENSORS, {"about": "{}", "digest": digest, "seal": digest_of(["{}", digest])}))
    with pytest.raises(InputError, match="does not hold what was written"): read_tensors(tmp_path/"t")


@pytest.mark.parametrize("content", [b"", b"junk", safetensors.torch.save(TENSORS), safetensors.torch.save(TENSORS, {"about": "{"}),
                                     safetensors.torch.save(TENSORS, {"about": "{}"})])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path/"t").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"): read_tensors(tmp_path/"t")


@pytest.mark.parametrize("classes", [2, 255, 256, 257, 1000])
def test_predictions_come_back_for_any_number_of_classes(classes):
    drawn = np.arange(600) % classes
    kept = packed(drawn, classes)
    assert (predictions({"predictions": json.loads(json.dumps(kept))}) == drawn).all() and kept["images"] == 600 and kept["classes"] == classes
    assert len(kept["zlib"]) < 1400 and predictions({"predictions": None}) is None


def test_predictions_of_256_classes_take_a_byte_each():
    import base64
    import zlib
    sizes = [len(zlib.decompress(base64.b64decode(packed(np.zeros(10), classes)["zlib"]))) for classes in (255, 256, 257)]
    assert sizes == [10, 10, 20]


def test_a_prediction_is_below_the_number_of_classes():
    kept = packed(np.array([0, 1, 2]), 3)
    assert predictions({"predictions": kept}).tolist() == [0, 1, 2]
    with pytest.raises(InputError): predictions({"predictions": kept | {"classes": 2}})


def spoiled(change):
    made = json.loads(sealed(record()))
    change(made)
    return json.dumps(made)


@pytest.mark.parametrize("content,says", [
    ("", "cannot be read as JSON"), ("[]", "is JSON but not"), ("{}", "is JSON but not"), ("5", "is JSON but not"),
    (spoiled(lambda r: r.pop("digest")), "is JSON but not"), (spoiled(lambda r: r.pop("scores")), "is JSON but not"),
    (spoiled(lambda r: r.update(schema=1)), "of format 1; this version reads format 2"), (spoiled(lambda r: r.update(schema=3)), "of format 3"),
    (spoiled(lambda r: r.update(key="x")), "was altered"), (spoiled(lambda r: r.update(digest="0")), "was altered"),
    (spoiled(lambda r: r.update(digest="z")), "was altered")])
def test_a_record_that_is_not_one_is_refused(tmp_path, content, says):
    (tmp_path/"r.json").write_text(content)
    with pytest.raises(InputError, match=says): read_record(tmp_path/"r.json", "result", {"key", "config", "scores"})


def test_a_record_has_its_format_and_digest_once(tmp_path):
    first = sealed(record())
    assert sealed(json.loads(first)) == first and json.loads(first)["schema"] == 2 and first.endswith(b"}\n") and first.startswith(b'{\n "')


def test_a_path_in_the_repository_is_shown_from_there():
    assert shown(ROOT/"local"/"x") == str(Path("local", "x")) and shown(Path("/elsewhere/x")) == str(Path("/elsewhere/x").resolve())


def test_the_own_result_goes_before_a_published_one(tmp_path):
    own, published = Store(tmp_path/"own", tmp_path/"published"), Store(tmp_path/"published")
    config, second = ({"seed": seed, "phases": [], "terms": [], "teacher": None} for seed in (1, 2))
    k, other = key_of(config), key_of(second)
    published.finish(record(key=k, config=config, where="published"))
    published.finish(record(key=other, config=second))
    assert own.found(k) == published.path("runs", k) and own.results()[k]["where"] == "published" and own.stamp(k) == 0
    own.finish(record(key=k, config=config, where="own"))
    assert own.found(k) == own.path("runs", k) and own.results()[k]["where"] == "own" and own.stamp(k) == own.path("runs", k).stat().st_mtime_ns
    assert set(own.results()) == {k, other} and set(own.results([k, "none"])) == {k} and own.found("none") is None
    assert published.results()[k]["where"] == "published" and own.folders == [tmp_path/"published", tmp_path/"own"]
    assert Store(tmp_path/"own").folders == [tmp_path/"own"]


def test_a_result_removes_its_checkpoint_and_no_other(tmp_path):
    store = Store(tmp_path)
    for key in ("k", "other"): write_whole(store.path("unfinished", key), b"")
    store.finish(record())
    assert [p.name for p in (tmp_path/"unfinished").iterdir()] == ["other.safetensors"] and store.path("runs", "k").name == "k.json"


def test_a_result_lies_under_its_own_name(tmp_path):
    for key in ("a", "z"):
        path = Store(tmp_path).path("runs", key)
        write_whole(path, sealed(record(key="m")))
        with pytest.raises(InputError, match="holds the result 'm'"): Store(tmp_path).results([key])


def test_a_plan_is_written_once_and_not_where_it_is_published(tmp_path):
    own, published = Store(tmp_path/"own", tmp_path/"published"), Store(tmp_path/"published")
    plan, other = {"table": "t", "entries": []}, {"table": "t", "entries": [{"run": "k"}]}
    path = published.add_plan(plan)
    assert path.name == digest_of(plan)[:16] + ".json" and len(path.stem) == 16
    own.add_plan(plan)
    assert not (tmp_path/"own").exists()
    own.add_plan(other)
    own.add_plan(other)
    assert sorted(len(p["entries"]) for p in own.plans("t")) == [0, 1] and own.plans("u") == []


def test_plans_are_numbered_in_the_order_in_which_they_were_recorded(tmp_path):
    published, own = Store(tmp_path/"published"), Store(tmp_path/"own", tmp_path/"published")
    plans = [{"table": "t", "entries": [{"run": key}]} for key in "abc"]
    published.add_plan(plans[1])
    for plan in (plans[2], plans[0], plans[1], plans[2]): own.add_plan(plan)
    own.add_plan(plans[0] | {"table": "u"})
    assert {p["entries"][0]["run"]: p["recorded"] for p in own.plans("t")} == {"b": 0, "c": 1, "a": 2} and own.plans("u")[0]["recorded"] == 0


def test_checking_a_folder_leaves_nothing_in_it(tmp_path):
    Store(tmp_path/"new").check()
    assert list((tmp_path/"new").iterdir()) == []


def test_weights_of_another_run_are_refused(tmp_path):
    store = Store(tmp_path)
    mark = write_tensors(store.path("weights", "k"), TENSORS, {"network": "b", "run": "k"})
    assert store.weights("k", {"network": "b"})[1] == mark
    for other in ("a", "c"):
        with pytest.raises(InputError, match=f"weights of the network b, but {other} is needed"): store.weights("k", {"network": other})
    with pytest.raises(InputError, match="weights of the data None"): store.weights("k", {"data": "x"})
