"Several students at a time: which way is taken, and that every way trains them."
from functools import partial

import pandas as pd
import pytest
import torch

from kdnb.bench import alternate, random_images
from kdnb.engine import in_flight
from kdnb.engine.execute import Speed
from kdnb.engine.in_flight import Batched, Processes, command, decided, elapsed, preferred, several, students, usable, ways_of, ways_of_a_gpu
from kdnb.engine.run import Phase, Run, distill, weighted
from kdnb.engine.train import Flight


def runs(count, loss="kd", precision="fp32"):
    "Equal students of one teacher, with an epoch of two steps, and their images."
    images = random_images(16)
    alone, source = (Run(net, "ce", (Phase("classify", 10**6, 8, 0.05),), images.identity, 0, precision) for net in ("resnet8", "resnet14"))
    return [distill(alone, (weighted(loss, 0.5),), source)] * count, images


def rounds(**seconds): return pd.DataFrame(seconds)


# the decision

@pytest.mark.parametrize("seconds, way", [
    ((1.0, 1.0, 1.0), "a"), ((1.049, 1.0, 1.2), "a"), ((1.05, 1.0, 1.2), "b"), ((2.0, 1.04, 1.0), "b"), ((2.0, 1.06, 1.0), "c"), ((0.5, 1.0, 1.0), "a")])
def test_the_simplest_way_wins_than_which_none_is_five_percent_faster(seconds, way):
    assert preferred(pd.DataFrame([seconds], columns=list("abc"))) == way


def test_the_median_of_rounds_decides_and_not_their_sum():
    assert preferred(rounds(a=[1, 1, 1], b=[0.5, 0.5, 100])) == "b"
    assert preferred(rounds(a=[1, 1, 1], b=[0.01, 2, 2])) == "a"


def test_every_network_counts_the_same_however_long_its_steps_take():
    small, large = rounds(**{"in turn": [1.0], "2 streams": [0.5]}), rounds(**{"in turn": [100.0], "2 streams": [110.0]})
    assert decided({"small": small, "large": large}) == "2 streams" and decided({"large": large}) == "in turn"


def test_a_way_that_one_network_lacks_is_not_taken_for_all():
    small, large = rounds(**{"in turn": [1.0], "batched": [0.1]}), rounds(**{"in turn": [1.0]})
    assert decided({"small": small, "large": large}) == decided({"large": large, "small": small}) == "in turn"


def test_ways_are_called_in_turns_on_the_clock_that_is_given():
    now, called, cost = [0.0], [], {"in turn": 2.0, "2 streams": 1.0}
    def way(name): called.append(name); now[0] += cost[name]
    def clock(work): start = now[0]; work(); return now[0] - start
    table = alternate({name: partial(way, name) for name in cost}, 3, clock)
    assert preferred(table) == "2 streams" and len(table) == 3 and called[:4] == ["2 streams", "in turn", "in turn", "2 streams"]


def test_the_queue_of_a_gpu_is_empty_before_and_after_a_way_is_timed(monkeypatch):
    said, times = [], iter([10.0, 13.0])
    monkeypatch.setattr(in_flight, "clock", lambda device: said.append(f"waited for {device}"))
    monkeypatch.setattr(in_flight.time, "perf_counter", lambda: said.append("read") or next(times))
    assert elapsed("cuda", lambda: said.append("work")) == 3.0
    assert said == ["waited for cuda", "read", "work", "waited for cuda", "read"]


def test_a_way_that_fails_is_left_out_and_told():
    def full(): raise torch.OutOfMemoryError("no memory left\nand a long story")
    good, failed = usable({"in turn": list, "8 processes": full, "batched": list})
    assert list(good) == ["in turn", "batched"] and failed == {"8 processes": "OutOfMemoryError: no memory left"}


def test_what_to_type_names_the_number():
    assert command("8 streams") == "`-p speed streams@count=8`" and "4 times" in command("4 processes") and command("graphs") == "`-p speed graphs`"
    assert "speed plain" in command("in turn") and "engine" in command("batched")
    assert [several(n) for n in (1, 2, 3, 8)] == [[], [2], [2], [2, 4, 8]]


# the ways

def test_a_cpu_has_neither_graphs_nor_streams():
    assert list(ways_of(*runs(4), "cpu")) == ["in turn", "2 processes", "4 processes", "batched"]


def test_a_gpu_has_graphs_of_other_learners_and_streams_for_those_in_turn(monkeypatch):
    compiled, flown = [], []
    def prepare(self, group, teachers):
        if self.compiled: compiled.extend(group)
        return Flight(("stream",) * self.streams, self.graphs or None)
    monkeypatch.setattr(Speed, "prepare", prepare)
    monkeypatch.setattr(in_flight, "train_epoch", lambda group, *rest, flight: flown.append((group, len(flight.streams), flight.graph)))
    made, other = (students(*runs(4), "cpu") for _ in range(2))
    ways = ways_of_a_gpu(made, other)
    for work in ways.values(): work()
    assert list(ways) == ["graphs", "compiled", "2 streams", "4 streams"] and compiled == other.group
    assert flown == [(made.group, 1, True), (other.group, 0, None), (made.group, 2, None), (made.group, 4, None)]


def test_the_same_runs_have_the_same_teacher_whatever_was_drawn_before():
    torch.manual_seed(1)
    first = students(*runs(1), "cpu").teachers.nets
    torch.manual_seed(2)
    again = students(*runs(1), "cpu").teachers.nets
    assert first.keys() == again.keys()
    for key, net in first.items(): assert all(map(torch.equal, net.state_dict().values(), again[key].state_dict().values()))


def test_an_epoch_can_be_taken_again_and_again():
    made = students(*runs(1), "cpu")
    before = made.group[0].net.classifier.weight.clone()
    for _ in range(2):
        made.epoch()
        after = made.group[0].net.classifier.weight.clone()
        assert made.group[0].epoch == 1 and not torch.equal(before, after)
        before = after


@pytest.mark.parametrize("loss", ["kd", "dkd", "sp"])
def test_batched_students_become_what_they_become_one_after_another(loss):
    made, same = students(*runs(2, loss), "cpu"), Batched(students(*runs(2, loss), "cpu"))
    made.epoch()
    same.epoch()
    stacked = same.weights | same.buffers
    for name, value in made.group[1].net.state_dict().items():
        assert torch.allclose(stacked[name][1].float(), value.float(), rtol=1e-3, atol=1e-5), name
    assert stacked["stem.1.num_batches_tracked"].tolist() == [2, 2]


def test_processes_train_their_parts_and_end_when_they_are_closed():
    given, images = runs(3)
    both = Processes(given, images, "cpu", 2)
    assert [len(part[0]) for part in both.given] == [2, 1] and not both.processes
    both()
    first = list(both.processes)
    both()
    assert both.processes == first and all(process.is_alive() for process in first)
    both.close()
    assert [process.exitcode for process in first] == [0, 0]


def test_what_fails_in_a_process_fails_here_and_all_of_them_end():
    given, images = runs(1)
    wrong = [Run("resnet8", "ce", given[0].phases, images.identity, 0, teacher=Run("no_such_net", "ce", given[0].phases, images.identity, 0))]
    both = Processes(wrong + given, images, "cpu", 2)
    with pytest.raises(RuntimeError, match="no_such_net"): both()
    assert not any(process.is_alive() for process in both.processes)


def test_a_process_that_is_killed_is_an_error_and_no_endless_wait():
    given, images = runs(1)
    one = Processes(given, images, "cpu", 1)
    one()
    one.processes[0].kill()
    one.processes[0].join()
    with pytest.raises((RuntimeError, OSError)): one()
    one.close()
