"""Low-rank pairs: the same matrix in every form."""

import pytest
import torch

from diffusers_erasepro.linalg.low_rank import LowRank, orthonormal, stack


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return LowRank(
        torch.randn(9, 4, generator=g, dtype=torch.float64),
        torch.randn(4, 11, generator=g, dtype=torch.float64),
    )


def test_every_form_is_the_same_matrix(pair):
    for form in (orthonormal(pair), pair.padded(7), orthonormal(pair.padded(6), rtol=1e-12)):
        torch.testing.assert_close(form.dense(), pair.dense())


def test_stack_is_the_sum(pair):
    torch.testing.assert_close(stack([pair, pair]).dense(), 2 * pair.dense())
    assert orthonormal(stack([pair, pair]), rtol=1e-12).rank == 4


def test_call_is_multiplication(pair):
    x = torch.randn(3, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(pair(x), x @ pair.dense().T)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_truncation_meets_the_eckart_young_error(pair, rank):
    tail = torch.linalg.svdvals(pair.dense())[rank:]
    error = (orthonormal(pair, max_rank=rank).dense() - pair.dense()).norm()
    torch.testing.assert_close(error, tail.norm())


def test_signs_do_not_depend_on_the_input_form(pair):
    flipped = LowRank(-pair.B, -pair.A)
    torch.testing.assert_close(orthonormal(flipped).A, orthonormal(pair).A)
