"CKA refuses what it cannot compare."
import torch

from kdnb.analysis.cka import StreamedCKA, debiased_cka
from kdnb.errors import refusal


def test_cka_refuses_other_lengths():
    x = torch.randn(9, 3)
    assert "9 and 8" in refusal(debiased_cka, x, x[:8]) and "9 and 8" in refusal(StreamedCKA().add, x, x[:8])
    assert (debiased_cka(x, x) - 1).abs() < 1e-9
