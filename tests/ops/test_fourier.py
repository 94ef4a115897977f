"""Fourier transforms: units stay where nothing is transformed along them; complex numbers are pairs of numbers."""

import pytest
import torch
from flow_case import Net, assert_cut_exactly, both, gates, inputs, traced
from torch import Tensor, nn

ALONG = {
    "fft": lambda y, d: torch.fft.fft(y, dim=d),
    "ifft": lambda y, d: torch.fft.ifft(y, dim=d),
    "rfft": lambda y, d: torch.fft.rfft(y, dim=d),
    "irfft": lambda y, d: torch.fft.irfft(y, n=5, dim=d),
    "hfft": lambda y, d: torch.fft.hfft(y, dim=d),
    "fftn": lambda y, d: torch.fft.fftn(y, dim=(d,)),
    "rfftn": lambda y, d: torch.fft.rfftn(y, dim=(d,)),
    "fft2": lambda y, d: torch.fft.fft2(y, dim=(0, d)),
    "rfft2": lambda y, d: torch.fft.rfft2(y, dim=(0, d)),
    "fftshift": lambda y, d: torch.fft.fftshift(y, dim=d),
}


def real(y: Tensor) -> Tensor:
    return y.real if y.is_complex() else y


@pytest.mark.parametrize("name", ALONG)
def test_units_pass_a_transform_along_positions_and_stay_along_themselves(name):
    positions = Net(lambda net, x: net.head(real(ALONG[name](net.up(x), 1))), up=nn.Linear(3, 4), head=nn.Linear(4, 2))
    units = both(lambda net, y: real(ALONG[name](y, -1)))

    flow = assert_cut_exactly(positions, inputs(2, 5, 3))

    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == [0, 1, 2, 3]
    assert flow.unknown_ops == {}
    assert traced(units, inputs(2, 5, 3)).pinned[f"fft_{name} mixes along it"] == 4


EVERYTHING = {
    "all dimensions": lambda y: torch.fft.fftn(y).real,
    "as many as sizes": lambda y: torch.fft.fftn(y, s=(4,)).real,
    "the last two": lambda y: torch.fft.fft2(y).real,
    "a shift of all": lambda y: torch.fft.ifftshift(y),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_without_dimensions_units_are_transformed_too(name):
    assert traced(both(lambda net, y: EVERYTHING[name](y)), inputs(2, 5, 3)).n_gates == 0


def test_units_before_the_transformed_dimensions_pass():
    """As many of the last dimensions as sizes are named are transformed."""
    up, head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    net = Net(lambda net, x: net.head(torch.fft.fftn(net.up(x), s=(6, 6)).real), up=up, head=head)

    flow = assert_cut_exactly(net, inputs(2, 3, 5, 5))

    assert gates(flow, "up.weight", 0) == gates(flow, "head.weight", 1) == [0, 1, 2, 3]


class GlobalFilter(nn.Module):
    """A filter of learned complex numbers, one for each frequency and channel."""

    def __init__(self, width: int, height: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(height, width // 2 + 1, channels, 2))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.weight)
        return torch.fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")


def test_a_filter_in_the_space_of_frequencies_is_cut_with_its_channels():
    net = nn.Sequential(nn.Linear(3, 6), GlobalFilter(4, 4, 6), nn.Linear(6, 2))

    flow = assert_cut_exactly(net, inputs(2, 4, 4, 3), forms=["in-place", "graph"], seeds=(0, 1))

    assert gates(flow, "0.weight", 0) == gates(flow, "1.weight", 2) == gates(flow, "2.weight", 1) == list(range(6))


def test_both_parts_of_a_complex_number_belong_to_its_unit():
    net = Net(
        lambda net, x: net.head(torch.view_as_real(torch.fft.fft(net.up(x), dim=1)).sum(-1)),
        up=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )

    assert assert_cut_exactly(net, inputs(2, 5, 3)).n_gates == 4


def test_units_that_are_read_as_parts_of_complex_numbers_stay():
    net = both(lambda net, y: torch.view_as_complex(y).abs(), width=2)

    assert traced(net, inputs(2, 5, 3)).n_gates == 0
