"Wherever training is killed, and however often, it ends with the same bits."
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_unbreakable import begin, finish, killed, numbers


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    output, code = finish(begin(folder, "--epochs", 1))
    assert code == 0, output
    return numbers(folder)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(steps=st.lists(st.integers(1, 15), min_size=1, max_size=3))
def test_a_kill_at_any_step_resumes_to_the_same_bits(uninterrupted, steps):
    "Steps are counted from where the kill before has left the training."
    with tempfile.TemporaryDirectory() as folder:
        killer = begin(folder, "--epochs", 1, "--each")
        for step in steps: killed(killer, "step", step, "SIGKILL")
        finish(killer)
        output, code = finish(begin(folder, "--epochs", 1))
        assert code == 0 and numbers(folder) == uninterrupted, output
