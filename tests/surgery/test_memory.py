"""A process that prunes again and again keeps nothing of the networks it has done with."""

import gc
import weakref

import torch
from tiny_task import network

import l0prune
from l0prune.look import capture as flow_capture
from l0prune.look.capture import capture


def one_cycle() -> list[weakref.ref]:
    """A network traced, gated, trained for a step, cut; what it consisted of."""
    torch.manual_seed(0)
    model, inputs = network()
    inputs = torch.randn_like(inputs)
    flow = l0prune.trace(model, inputs)
    gated = l0prune.inject(model, flow, budget=l0prune.Budget("macs", 0.5), steps=2)
    (gated(inputs).sum() + gated.penalty()).backward()
    gated.step()
    gated.freeze(torch.arange(gated.n_gates) % 2.0)
    compact = l0prune.shrink(gated)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())
    return [weakref.ref(thing) for thing in (model, flow, gated, compact)]


def collected() -> None:
    for _ in range(3):
        gc.collect()


def test_a_network_that_was_pruned_goes_with_its_last_name():
    one_cycle()
    references = one_cycle()
    collected()

    assert [reference() for reference in references] == [None] * 4


def results_kept(program: torch.export.ExportedProgram) -> int:
    """How many results torch keeps of the ops by which it found the sizes in a program."""
    values = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    return len(values[0].fake_mode.shape_env.fake_tensor_cache)


def test_what_stays_of_torch_of_an_exported_network_holds_no_results_of_ops(monkeypatch):
    captured = capture(*network())
    assert captured.dynamic_batch
    assert results_kept(captured.program) == 0

    monkeypatch.setattr(flow_capture, "forget_fake_results", lambda program: None)
    assert results_kept(capture(*network()).program) > 5
