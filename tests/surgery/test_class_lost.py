"""Why a cut network has not kept its class: said by its record, after loading, and where it is scripted."""

import pytest
import torch
from flow_case import EXACT, Net, closing, difference, gated_at, inputs, random_gates, ready, traced
from torch import nn

import l0prune
from l0prune.errors import ConfigError, PlanMismatchError
from l0prune.surgery.shrink import shrink


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo):
        raise NotADirectoryError("this cannot be copied")


class Fixed(nn.Module):
    """Insists on its width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != 8:
            raise ValueError("eight features, please")
        return x.relu()


def up_and_down(function, **parts) -> nn.Module:
    return Net(function, up=nn.Linear(6, 8), head=nn.Linear(8, 4), **parts)


def scaled_by_its_width() -> nn.Module:
    return up_and_down(lambda net, x: net.head(net.up(x) / net.up(x).shape[-1] ** 0.5))


def random_cut(net: nn.Module, **options) -> nn.Module:
    flow = traced(net, inputs(2, 6))
    return shrink(gated_at(net, flow, random_gates(flow)), **options)


def test_a_class_that_was_kept_needs_no_reason():
    assert random_cut(up_and_down(lambda net, x: net.head(net.up(x).relu()))).surgery.not_in_place_because == ""


def test_a_class_that_computes_with_its_width_is_lost_for_the_difference_it_makes():
    reason = str(random_cut(scaled_by_its_width()).surgery.not_in_place_because)

    assert reason.startswith("in place, outputs differ by ")
    assert reason.endswith(" at output 0")
    assert float(reason.split()[5]) > 1e-2


def test_the_way_that_came_closest_gives_the_reason():
    """Only some ways run at all."""
    net = Net(
        lambda net, x: net.head(net.up(x).view(-1, net.width) / net.up(x).shape[-1] ** 0.5),
        up=nn.Linear(6, 8),
        head=nn.Linear(8, 4),
    )
    net.width = 8

    assert random_cut(net).surgery.not_in_place_because.startswith("in place, outputs differ by ")


def test_a_module_whose_code_stops_at_another_width_is_named_with_what_it_says():
    net = up_and_down(lambda net, x: net.head(net.parts[1](net.up(x))), parts=nn.ModuleList([nn.Identity(), Fixed()]))

    reason = random_cut(net).surgery.not_in_place_because

    assert reason == "in place, it does not run in 'parts.1': ValueError: eight features, please"


def test_a_class_that_cannot_be_copied_says_so():
    net = nn.Sequential(Uncopyable(6, 8), nn.ReLU(), nn.Linear(8, 4))

    reason = random_cut(net).surgery.not_in_place_because

    assert reason == "Sequential cannot be copied and cut: NotADirectoryError: this cannot be copied"


def test_a_closed_branch_that_no_module_computes_is_named():
    net = Net(
        lambda net, x: net.head(x + nn.functional.linear(torch.relu(nn.functional.linear(x, net.a)), net.b)),
        a=nn.Parameter(torch.empty(5, 6)),
        b=nn.Parameter(torch.empty(6, 5)),
        head=nn.Linear(6, 2),
    )
    flow = traced(net, inputs(2, 6))

    reason = shrink(gated_at(net, flow, closing(flow, "a[0]"))).surgery.not_in_place_because

    assert reason == "a[0] is entirely closed, and only a graph can drop what uses it"


def test_a_graph_that_was_asked_for_says_so():
    net = up_and_down(lambda net, x: net.head(net.up(x).relu()))

    assert random_cut(net, form="graph").surgery.not_in_place_because == "form='graph' was asked for"


def test_the_reason_is_saved_and_stands_where_the_class_is_asked_for(tmp_path):
    net = scaled_by_its_width()
    compact = random_cut(net)
    reason = compact.surgery.not_in_place_because
    l0prune.save(compact, tmp_path / "compact")

    assert l0prune.load(tmp_path / "compact").surgery.not_in_place_because == reason
    with pytest.raises(PlanMismatchError, match=r"not in its class \(in place, outputs differ by"):
        l0prune.load(tmp_path / "compact", base=net)


def test_the_reason_of_the_first_cut_stands_after_the_second():
    first = random_cut(scaled_by_its_width())

    assert random_cut(first).surgery.not_in_place_because == first.surgery.not_in_place_because != ""


def test_a_graph_that_was_loaded_without_its_class_and_cut_again_says_so(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    l0prune.save(random_cut(net), tmp_path / "compact")
    loaded = l0prune.load(tmp_path / "compact")
    assert loaded.surgery.not_in_place_because == ""

    again = random_cut(loaded)

    assert again.surgery.form == "graph"
    assert again.surgery.not_in_place_because == "it was cut again after it had been loaded without its class (base=)"


def test_verify_reports_the_reason():
    report = l0prune.verify(ready(scaled_by_its_width()), inputs(2, 6), onnx=False)

    assert (report.exact, report.form) == (True, "graph")
    assert report.to_json()["not_in_place_because"].startswith("in place, outputs differ by ")


def test_scripting_a_graph_is_refused_with_what_to_do_instead():
    net, x = up_and_down(lambda net, x: net.head(net.up(x).relu())), inputs(2, 6)
    compact = random_cut(net, form="graph")

    with pytest.raises(ConfigError, match=r"torch\.jit\.trace, torch\.export or"):
        torch.jit.script(compact)

    assert difference(torch.jit.trace(compact, x)(x), compact(x)) < EXACT
