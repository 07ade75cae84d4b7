"What has to be trained, in which order, and by whom."
from dataclasses import replace

import pytest

from kdnb.data.images import Identity
from kdnb.engine.queue import Queue, claim, closure, depth, pending, ready
from kdnb.engine.run import Phase, Run, Weighted
from kdnb.store import Store, write_whole

BASE = Run("resnet14", "ce", (Phase("classify", 1, 64, 0.1),), Identity("digits", 10, 5, 5, "0123456789ab"), 0)
TEACHER, TEACHER1 = BASE, replace(BASE, seed=1)
ASSISTANT = replace(BASE, net="resnet10", terms=(Weighted("kd"),), teacher=TEACHER)
ALONE = replace(BASE, net="resnet8")
FIRST, SECOND = (replace(ALONE, terms=(Weighted(loss),), teacher=TEACHER) for loss in ("kd", "mse"))
DEEP = replace(ALONE, terms=(Weighted("takd"),), teacher=ASSISTANT)
OTHER = replace(ALONE, seed=1, terms=(Weighted("kd"),), teacher=TEACHER1)
ALL = closure([DEEP, OTHER, FIRST, ALONE, SECOND])


def finish(store, *runs, weights=True):
    for run in runs:
        store.finish({"key": run.key, "config": {}, "scores": {}})
        if weights: write_whole(store.path("weights", run.key), b"")


def test_a_closed_plan_has_every_teacher_once_and_before_its_students():
    assert [depth(run) for run in (TEACHER, FIRST, ASSISTANT, DEEP)] == [0, 1, 1, 2]
    assert len(ALL) == 8 and set(run.key for run in ALL) == {r.key for r in (TEACHER, TEACHER1, ASSISTANT, ALONE, FIRST, SECOND, DEEP, OTHER)}
    places = {run.key: i for i, run in enumerate(ALL)}
    assert all(places[run.teacher.key] < places[run.key] for run in ALL if run.teacher)


def test_what_is_finished_is_not_pending(tmp_path):
    store = Store(tmp_path)
    assert pending(ALL, store) == ALL
    finish(store, *ALL)
    assert pending(ALL, store) == [] and pending(ALL, store, force=True) == ALL and pending(ALL, store, weights=True) == []
    store.path("weights", FIRST.key).unlink()
    assert pending(ALL, store) == [] and pending(ALL, store, weights=True) == [FIRST]


def test_a_teacher_whose_weights_are_gone_is_trained_again_where_a_student_needs_it(tmp_path):
    store = Store(tmp_path)
    finish(store, *[run for run in ALL if run not in (DEEP, FIRST)])
    assert pending(ALL, store) == [run for run in ALL if run in (DEEP, FIRST)]
    store.path("weights", ASSISTANT.key).unlink()
    assert pending(ALL, store) == [run for run in ALL if run in (ASSISTANT, DEEP, FIRST)]
    store.path("weights", TEACHER.key).unlink()
    store.path("weights", TEACHER1.key).unlink()
    assert pending(ALL, store) == [run for run in ALL if run in (TEACHER, ASSISTANT, DEEP, FIRST)]


def test_ready_are_those_whose_teachers_are_trained_by_depth_and_seed():
    assert ready(ALL) == [[run for run in ALL if run in (TEACHER, ALONE)], [TEACHER1]]
    left = [run for run in ALL if run not in (TEACHER, TEACHER1, ALONE)]
    assert ready(left) == [[run for run in left if run in (ASSISTANT, FIRST, SECOND)], [OTHER]]
    assert ready([DEEP]) == [[DEEP]] and ready([]) == []


def test_a_run_is_claimed_by_one_alone(tmp_path):
    store = Store(tmp_path)
    lock = claim(ALONE, store)
    assert lock and claim(ALONE, store) is None and claim(FIRST, store)
    lock.release()
    assert claim(ALONE, store)


def names(runs): return sorted(run.label for run in runs)


def test_a_queue_is_worked_off_group_by_group(tmp_path):
    store = Store(tmp_path)
    queue = Queue(ALL, store)
    for expected in ([TEACHER, ALONE], [TEACHER1], [ASSISTANT, FIRST, SECOND], [OTHER], [DEEP]):
        mine = queue.take()
        assert names(mine) == names(expected) and set(queue.locks) == {run.key for run in expected}
        finish(store, *mine)
        queue.release()
        assert queue.locks == {} and names(queue.settle()) == names(expected)
        assert not list((tmp_path/"unfinished").glob("*.lock"))
    assert queue.left == [] and queue.take() == []


def test_the_lock_of_a_released_run_is_gone(tmp_path):
    queue = Queue([ALONE], Store(tmp_path))
    queue.take()
    queue.release()
    assert not list((tmp_path/"unfinished").glob("*.lock")) and queue.settle() == [] and queue.left == [ALONE]


def test_two_queues_share_what_is_ready(tmp_path):
    store = Store(tmp_path)
    one, other = Queue(ALL, store), Queue(ALL, store)
    first, second = one.take(), other.take()
    assert names(first) == names([TEACHER, ALONE]) and second == [TEACHER1]
    assert Queue(ALL, store).take() == [], "the rest waits for teachers"
    finish(store, *first)
    one.release()
    assert names(other.settle()) == names(first), "what another has trained is settled"
    other.release()
    assert other.take() == [TEACHER1]


def test_what_another_trained_meanwhile_is_claimed_but_not_trained_again(tmp_path):
    store = Store(tmp_path)
    queue = Queue(closure([ALONE]), store, force=True)
    finish(store, ALONE)
    assert queue.take() == [] and set(queue.locks) == {ALONE.key} and queue.settle() == [ALONE]


def test_a_run_is_settled_only_with_the_weights_that_are_wanted(tmp_path):
    store = Store(tmp_path)
    plain, wanted, teaching = Queue([TEACHER], store), Queue([TEACHER], store, weights=True), Queue(closure([FIRST]), store)
    assert not any(queue.settled(TEACHER) for queue in (plain, wanted, teaching))
    finish(store, TEACHER, weights=False)
    assert plain.settled(TEACHER) and not wanted.settled(TEACHER) and not teaching.settled(TEACHER)
    finish(store, TEACHER)
    assert wanted.settled(TEACHER) and teaching.settled(TEACHER) and not teaching.settled(FIRST)


def test_who_failed_loses_its_students_and_theirs(tmp_path):
    queue = Queue(closure([DEEP, FIRST, ALONE]), Store(tmp_path))
    queue.failed[ASSISTANT.key] = "too large"
    assert [queue.lost(run) for run in (TEACHER, ASSISTANT, DEEP, FIRST, ALONE)] == [False, True, True, False, False]
    assert queue.settle() == [] and names(queue.left) == names([TEACHER, FIRST, ALONE])


@pytest.mark.parametrize("force", [False, True])
def test_a_finished_plan_is_trained_again_by_force_alone(tmp_path, force):
    store = Store(tmp_path)
    finish(store, *ALL)
    queue = Queue(ALL, store, force)
    assert queue.todo == (ALL if force else []) and bool(queue.take()) == force


def test_who_waits_for_several_runs_of_one_holder_says_so_once(tmp_path):
    store, runs = Store(tmp_path), [ALONE, BASE, replace(ALONE, net="resnet20")]
    one, other = Queue(runs, store), Queue(runs, store)
    assert len(one.take()) == 3 and other.take() == []
    assert other.news().startswith(f"waiting for {runs[0].label} and 2 more, held by ") and other.news() == "", "once a minute"
    one.release()
