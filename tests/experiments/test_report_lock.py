"A report is read and written under one lock, so that no older one takes the place of a newer; where nothing can be written, it is shown."
import errno
import os

import pytest

import kdnb.report.cells as cells
import kdnb.report.write as module
from kdnb.experiments.lee2025 import Lee2025
from kdnb.report.example import result_of
from kdnb.store import Lock
from notebooks import experiment_of


@pytest.fixture
def finished(tmp_path):
    "A table whose runs have made-up results."
    table = Lee2025(table=experiment_of("cifar10_supcon")[1], loss="gram", data="digits", epochs=1, seeds=1, device="cpu", reports=str(tmp_path))
    for plan in table.plans:
        for run in {entry.run.key: entry.run for entry in plan.entries}.values():
            for own in filter(None, (run, run.teacher)):
                table.store.finish(result_of(own.config, 90.0, key=own.key, objective=own.root.objective))
        table.store.add_plan(plan.record)
    return table


def test_a_report_is_read_and_written_under_one_lock(finished, monkeypatch):
    held, write, results = [], module.write_report, finished.store.results
    def holds(done): held.append((done, not Lock(finished.folder/".lock").take()))
    monkeypatch.setattr(module, "write_report", lambda *given: (holds("written"), write(*given)))
    monkeypatch.setattr(finished.store, "results", lambda *given: (holds("read"), results(*given))[1])
    own = results()
    assert "table.md" in repr(finished.report(own)) and held == [("read", True), ("written", True)]
    assert {p.name for p in finished.folder.iterdir()} >= {"table.md", "table.csv"} and not (finished.folder/".lock").exists()


def test_the_cells_of_a_report_are_laid_out_once_for_the_page_and_the_log(finished, monkeypatch):
    calls, own = [], cells.laid_out
    monkeypatch.setattr(cells, "laid_out", lambda *given: calls.append(1) or own(*given))
    monkeypatch.setattr("kdnb.report.text.laid_out", None)
    assert "table.md" in repr(finished.report(finished.store.results())) and len(calls) == 1


def test_a_finished_table_in_a_folder_that_is_only_read_is_shown(finished, monkeypatch):
    wanted, real = repr(finished.report(finished.store.results())), os.open
    before = {p: p.stat().st_mtime_ns for p in finished.store.folder.rglob("*")}
    def opened(path, flags, *rest, **more):
        if flags & os.O_CREAT: raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **more)
    monkeypatch.setattr(os, "open", opened)
    shown = repr(finished.report(finished.train(live=False)))
    assert shown.rpartition("\n\n")[0] == wanted.rpartition("\n\n")[0]
    assert "No report was written" in shown and os.strerror(errno.EROFS) in shown
    assert before == {p: p.stat().st_mtime_ns for p in finished.store.folder.rglob("*")}
