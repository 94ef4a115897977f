"""LeNet-5 whose single features can be gated: the list of those that are read gets shorter, and nothing else changes."""

import torch

import l0prune
from l0prune import models


def test_lists_of_features_and_pixels_take_the_same_checkpoints():
    for name, option in (("lenet5", "select_features"), ("lenet300", "select_inputs")):
        factory = models.entry(name).factory
        plain, selecting = factory(), factory(**{option: True})
        selecting.load_state_dict(plain.state_dict())
        x = torch.randn(3, 1, 28, 28)

        assert torch.equal(selecting.eval()(x), plain.eval()(x))


def test_single_features_are_cut_and_the_channels_behind_them_stay():
    model = models.entry("lenet5").factory(widths=(4, 6, 10), select_features=True).double().eval()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    flow = l0prune.trace(model, x)
    gated = l0prune.inject(model, flow)
    values = torch.ones(flow.n_gates)
    (features,) = [consumer.gates for consumer in flow.consumers if consumer.parameter == "fc1.weight"]
    values[features[[0, 5, 17, 95]]] = 0
    gated.freeze(values)

    compact = l0prune.shrink(gated)

    assert tuple(compact.fc1.weight.shape) == (10, 92)
    assert compact.conv2.out_channels == 6
    assert torch.allclose(compact(x), gated.eval()(x), rtol=0, atol=1e-10)
