"Locks outlive whatever happens to their holders, and tell who they are; what a kill leaves is swept; files follow the umask."
import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import kdnb.store as module
from interrupted import images, plan_of, small_plan
from kdnb.engine.execute import How, execute
from kdnb.engine.queue import Queue, claim, closure
from kdnb.registry import InputError
from kdnb.store import Lock, NotWritten, Store, here, locked, sweep, write_tensors, write_whole
from test_unbreakable import begin, finish, numbers

QUIET = How(live=False)
HOLDER = """
import sys, time
import kdnb.store as store
store.LEASE = float(sys.argv[2])
lock = store.Lock(sys.argv[1])
assert lock.take()
print("held", flush=True)
for line in sys.stdin: print(lock.lost, flush=True)
"""
DEAD = 2**22 + 1  # no process has this number: Linux ends below


def holder(path, lease=60.0):
    "A process that holds a lock and answers, for every line, whether it lost it."
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path, str(lease)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    return process


def ask(process):
    print(file=process.stdin, flush=True)
    return process.stdout.readline().strip()


def until(done):
    "Waits for what must come, however slow the machine."
    while not done(): time.sleep(0.05)


@pytest.fixture
def clock(monkeypatch):
    "A monotonic clock that is moved by hand."
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    def move(seconds): now[0] += seconds
    return move


def test_a_killed_holder_on_this_host_is_gone_at_once(tmp_path):
    process, lock = holder(tmp_path/"a.lock"), Lock(tmp_path/"a.lock")
    assert not lock.take() and f"process {process.pid} on {socket.gethostname()} since 20" in lock.holder
    process.kill()
    process.wait()
    assert lock.take() and not lock.lost
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_stopped_holder_loses_its_claim_and_sees_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEASE", 1.0)
    process, lock = holder(tmp_path/"a.lock", 1.0), Lock(tmp_path/"a.lock")
    assert ask(process) == "False"
    os.kill(process.pid, signal.SIGSTOP)
    try: until(lock.take)
    finally: os.kill(process.pid, signal.SIGCONT)
    assert ask(process) == "True" and not lock.lost
    process.stdin.close()
    process.wait()
    assert not lock.lost and lock.path.exists(), "the one that lost it takes nothing with it"
    lock.release()


def test_a_claim_that_was_overtaken_and_given_back_is_lost(tmp_path):
    "Nobody holds it any more, and that is known before the next touch."
    lock = Lock(tmp_path/"a.lock")
    assert lock.take() and not lock.lost
    lock.path.unlink()
    assert lock.lost
    lock.release()


def test_only_one_writer_at_a_time(tmp_path):
    "Four processes add one to a number fifty times each; nothing is lost."
    (tmp_path/"number").write_text("0")
    code = ("import sys; from pathlib import Path; from kdnb.store import locked, write_whole\npath = Path(sys.argv[1])\nfor _ in range(50):\n"
            "    with locked(path.with_suffix('.lock')): write_whole(path, str(int(path.read_text()) + 1).encode())")
    several = [subprocess.Popen([sys.executable, "-c", code, tmp_path/"number"]) for _ in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    assert (tmp_path/"number").read_text() == "200" and [p.name for p in tmp_path.iterdir()] == ["number"]


def marker(host="elsewhere", lease=None):
    return f"filelock/2\npid=1\nhost={host}\nmode=lease\ntoken=abc\nduration={module.LEASE if lease is None else lease!r}\nsince=2026-01-01 10:00:00+00:00\n"


def test_a_dead_host_s_claim_passes_after_a_lease_and_a_living_one_s_does_not(tmp_path, clock):
    path, lock = tmp_path/"a.lock", Lock(tmp_path/"a.lock")
    path.write_text(marker())
    for n in range(20):  # it lives: it touches the file
        os.utime(path, (n, n))
        assert not lock.take()
        clock(0.9 * module.LEASE)
    assert lock.holder == "process 1 on elsewhere since 2026-01-01 10:00:00+00:00"
    assert not lock.take()
    clock(0.2 * module.LEASE)
    assert lock.take() and not lock.lost
    lock.release()


@pytest.mark.parametrize("text", ["", "\n", "another program\n", "1\n", "\xff", marker()[:30], marker(lease=0.5), marker().replace("lease\n", "new\n")], ids=range(8))
def test_an_empty_or_foreign_lock_file_is_nobodys_in_the_end(tmp_path, clock, text):
    path, lock = tmp_path/"a.lock", Lock(tmp_path/"a.lock")
    path.write_bytes(text.encode("latin1"))
    assert not lock.take() and lock.holder
    for _ in range(8):
        clock(module.LEASE)
        if lock.take(): break
    assert lock.lease.is_locked
    lock.release()


def test_a_file_system_that_cannot_swap_names_is_waited_out(tmp_path, clock, monkeypatch):
    "NFS and SMB: a claim is then taken over after two leases, by removing it."
    import filelock._soft as soft
    monkeypatch.setattr(soft, "exchange_names", lambda *names: False)
    (tmp_path/"a.lock").write_text(marker())
    lock, taken = Lock(tmp_path/"a.lock"), []
    for _ in range(5):
        taken.append(lock.take())
        if taken[-1]: break
        clock(1.1 * module.LEASE)
    assert taken == [False, False, False, True]
    lock.release()


def test_a_folder_in_a_lock_s_place_is_one_sentence(tmp_path):
    (tmp_path/"a.lock").mkdir()
    with pytest.raises(InputError, match="a.lock cannot be locked: .*Move away") as caught: Lock(tmp_path/"a.lock").take()
    assert "\n" not in str(caught.value)


def failing(monkeypatch, number, times, where=".lock"):
    "Has the making of files of a kind fail so often."
    real, left = os.open, [times]
    def opened(path, flags, *rest, **more):
        if str(path).endswith(where) and flags & os.O_CREAT and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest, **more)
    monkeypatch.setattr(os, "open", opened)


SMALL = plan_of(small_plan(epochs=1).runs[0])


@pytest.mark.parametrize("number, times", [(errno.ENOLCK, 10**6), (errno.EOPNOTSUPP, 10**6), (errno.ESTALE, 3), (errno.EIO, 3)], ids=["ENOLCK", "EOPNOTSUPP", "ESTALE", "EIO"])
def test_what_a_shared_file_system_says_is_survived(tmp_path, monkeypatch, number, times):
    failing(monkeypatch, number, times)
    assert set(execute(SMALL, images, Store(tmp_path), QUIET)) == {run.key for run in closure(SMALL.runs)}


def test_a_lock_out_of_reach_is_told(tmp_path, monkeypatch, clock):
    failing(monkeypatch, errno.ESTALE, 10**6)
    queue = Queue(closure(SMALL.runs), Store(tmp_path))
    assert queue.take() == [] and "cannot be locked: " + os.strerror(errno.ESTALE) in queue.news()
    assert queue.news() == ""
    clock(61)
    assert "cannot be locked" in queue.news(), "once a minute"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_lock_that_can_never_be_is_one_sentence(tmp_path, monkeypatch, number):
    failing(monkeypatch, number, 10**6)
    with pytest.raises(NotWritten, match="cannot be locked") as caught: claim(SMALL.runs[0], Store(tmp_path))
    assert "\n" not in str(caught.value)


def test_another_user_s_lock_is_held_and_not_an_error(tmp_path, monkeypatch):
    theirs = Lock(tmp_path/"a.lock")
    assert theirs.take()
    lock = Lock(tmp_path/"a.lock")
    def refused(**more): raise PermissionError(errno.EACCES, "Permission denied", str(lock.path))
    monkeypatch.setattr(lock.lease, "acquire", refused)
    assert not lock.take() and f"process {os.getpid()} on" in lock.holder
    theirs.release()


def test_who_waits_says_for_whom_and_stops_when_asked(tmp_path):
    first = begin(tmp_path, "--epochs", 1, "--hold")
    assert "holding\n" in iter(first.stdout.readline, "")
    second = begin(tmp_path, "--epochs", 1)
    line = next(line for line in iter(second.stdout.readline, "") if line.startswith("waiting for "))
    assert re.search(rf"waiting for resnet14-\S+ and 1 more, held by process {first.pid} on {socket.gethostname()} since \d{{4}}-", line)
    second.send_signal(signal.SIGTERM)
    output, code = finish(second)
    assert code == -signal.SIGTERM and "Stopped" in output, output
    print(file=first.stdin, flush=True)
    output, code = finish(first)
    assert code == 0, output


def test_a_stopped_process_is_overtaken_and_nothing_is_lost(tmp_path):
    "It holds both teachers, is stopped at its first step, and goes on after another has trained everything."
    first = begin(tmp_path, "--epochs", 1, "--lease", 2, "--hold")
    assert "holding\n" in iter(first.stdout.readline, "")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        output, code = finish(begin(tmp_path, "--epochs", 1, "--lease", 2))
        assert code == 0, output
        written = {p.name: p.read_bytes() for p in (tmp_path/"runs").iterdir()}
    finally: os.kill(first.pid, signal.SIGCONT)
    print(file=first.stdin, flush=True)
    output, code = finish(first)
    assert code == 0 and len(written) == len(closure(small_plan().runs)), output
    assert {p.name: p.read_bytes() for p in (tmp_path/"runs").iterdir()} == written, "what was overtaken writes nothing"
    assert not list(tmp_path.rglob("*.lock")) and numbers(tmp_path)


# what a kill leaves

def test_what_a_killed_process_leaves_amid_a_file_is_swept(tmp_path):
    output, code = finish(begin(tmp_path, "--epochs", 1, "--kill", "half unfinished", 2, "SIGKILL"))
    assert code == -signal.SIGKILL, output
    left = list(tmp_path.rglob(".partial-*"))
    living, elsewhere = (tmp_path/"unfinished"/f".partial-{host}-{os.getpid()}-0123abcd" for host in (here(), "elsewhere"))
    for path in (living, elsewhere): path.write_bytes(b"half")
    assert len(left) == 1 and list(tmp_path.rglob("*.lock"))
    Store(tmp_path).check()
    assert set(tmp_path.rglob(".partial-*")) == {living, elsewhere} and not list(tmp_path.rglob("*.lock"))
    assert list((tmp_path/"unfinished").glob("*.safetensors")), "the first checkpoint is whole"


def test_a_living_process_s_partial_file_and_lock_are_never_swept(tmp_path):
    path = tmp_path/"unfinished"/"a.lock"
    path.parent.mkdir()
    process = holder(path)
    partial = path.parent/f".partial-{here()}-{process.pid}-0123abcd"
    partial.touch()
    os.kill(process.pid, signal.SIGSTOP)
    sweep(tmp_path)
    assert partial.exists() and path.exists()
    process.kill()
    process.wait()
    sweep(tmp_path)
    assert not partial.exists() and not path.exists()


def test_one_process_sweeps_at_a_time(tmp_path):
    left = tmp_path/f".partial-{here()}-{DEAD}-0123abcd"
    left.touch()
    with locked(tmp_path/".sweep.lock"):
        sweep(tmp_path)
        assert left.exists()
    sweep(tmp_path)
    assert not left.exists()


def test_what_another_host_left_is_swept_after_a_day_by_the_file_system_s_clock(tmp_path, monkeypatch):
    fresh, old = tmp_path/".partial-elsewhere-1-0123abcd", tmp_path/".partial-elsewhere-2-0123abcd"
    for path in (fresh, old): path.touch()
    os.utime(old, (old.stat().st_mtime - 1.01 * module.DAY,) * 2)
    monkeypatch.setattr(time, "time", lambda: 1e12)  # this host's clock is wrong
    sweep(tmp_path)
    assert fresh.exists() and not old.exists()


# rights

@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o002, 0o664), (0o007, 0o660), (0o077, 0o600)])
def test_files_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_whole(tmp_path/"a"/"b.json", b"{}")
        write_tensors(tmp_path/"a"/"w.safetensors", {}, {})
    finally: os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path/"a").iterdir()} == {mode}


def test_a_finished_plan_in_a_folder_that_is_only_read_gives_its_results(tmp_path, monkeypatch):
    wanted = execute(SMALL, images, Store(tmp_path), QUIET)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    failing(monkeypatch, errno.EROFS, 10**6, "")
    assert execute(SMALL, images, Store(tmp_path), QUIET) == wanted
    assert execute(replace(SMALL, note="another plan of the same runs"), images, Store(tmp_path), QUIET) == wanted
    with pytest.raises(InputError, match="cannot be written"): execute(small_plan(epochs=1), images, Store(tmp_path), QUIET)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
