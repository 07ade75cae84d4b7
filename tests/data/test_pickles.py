"Details of the machine of inert records that only some pickles show."
import pickle

import numpy as np
import pytest

import kdnb.data.pickles as pickles
from kdnb.data.pickles import read_pickle


def test_values_are_remembered_beyond_the_first_256():
    names = [f"name {i}" for i in range(400)]
    wanted = {"names": names, "again": [names[300], names[399], names[0]], "after": 7}
    content = pickle.dumps(wanted, protocol=2)
    assert b"r\x00\x01\x00\x00" in content and b"j" in content, "LONG_BINPUT and LONG_BINGET"
    assert read_pickle(content) == wanted


@pytest.mark.parametrize("shape", [[2, 2], 4, (2, -2), (2, 2.0), (True, 4), (1, 1, 1, 2, 2)])
def test_a_shape_is_a_tuple_of_at_most_four_whole_numbers(shape, monkeypatch):
    one = np.arange(4, dtype=np.uint8)
    monkeypatch.setattr(pickles, "described", lambda value: (shape, value, False, one.tobytes()))
    monkeypatch.setattr(pickles, "whole_type", lambda kind: np.dtype(np.uint8))
    with pytest.raises(ValueError, match="no shape"): pickles.read_array(None)
