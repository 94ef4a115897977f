"""Exported programs: the honest ones load, those that bring code are refused and nothing runs."""

import io
import json
import os
import zipfile
from contextlib import suppress

import pytest
import torch
from torch import nn

from l0prune import models
from l0prune.errors import ModelSpecError
from l0prune.sources.exported import load_exported

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A small exported program with a dynamic batch, and the network behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 5, 5),), dynamic_shapes=dynamic), path)
    return model, path


def rewritten(path, target, edit):
    """A copy of an archive whose members `edit` (a dict by name below the archive's folder) has changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return target


def editing(name, change):
    """An edit of one JSON member."""

    def edit(members):
        content = json.loads(members[name])
        change(content)
        members[name] = json.dumps(content).encode()

    return edit


def refusal(path):
    with pytest.raises(ModelSpecError) as caught:
        load_exported(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_an_exported_program_computes_what_its_network_computes(program):
    model, path = program

    loaded, inputs = load_exported(path)

    assert isinstance(inputs, tuple)
    assert inputs[0].shape == (2, 3, 5, 5)
    x = torch.randn(7, 3, 5, 5)
    torch.testing.assert_close(loaded(x), model(x))
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_its_mode_can_be_set(program):
    loaded, _ = load_exported(program[1])

    assert not loaded.eval().training
    assert loaded.train().training


@pytest.mark.parametrize(("name", "arguments"), [("vit_cifar", {"depth": 1}), ("lenet5", {})])
def test_the_reference_networks_survive_export(name, arguments, tmp_path):
    entry = models.entry(name)
    model, x = entry.factory(**arguments).eval(), torch.randn(2, *entry.input_shape)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")

    torch.testing.assert_close(load_exported(tmp_path / "m.pt2")[0](x), model(x))


def test_pickled_weights_are_refused(program, tmp_path):
    trap = tmp_path / "trap"

    def edit(members):
        config = json.loads(members[WEIGHTS])
        next(iter(config["config"].values()))["use_pickle"] = True
        members[WEIGHTS] = json.dumps(config).encode()
        buffer = io.BytesIO()
        torch.save(Bomb(trap), buffer)
        members["data/weights/weight_0"] = buffer.getvalue()

    text = refusal(rewritten(program[1], tmp_path / "x.pt2", edit))

    assert "pickled" in text
    assert not trap.exists()


def test_sample_inputs_with_code_are_refused(program, tmp_path):
    trap = tmp_path / "trap"

    def edit(members):
        buffer = io.BytesIO()
        torch.save(((Bomb(trap),), {}), buffer)
        members[SAMPLES] = buffer.getvalue()

    assert "sample inputs" in refusal(rewritten(program[1], tmp_path / "x.pt2", edit))
    assert not trap.exists()


def test_the_trap_would_have_worked_in_torch(program, tmp_path):
    trap = tmp_path / "trap"

    def edit(members):
        buffer = io.BytesIO()
        torch.save(((Bomb(trap),), {}), buffer)
        members[SAMPLES] = buffer.getvalue()

    with suppress(Exception):  # whatever torch makes of it afterwards
        torch.export.load(rewritten(program[1], tmp_path / "x.pt2", edit))

    assert trap.exists()


@pytest.mark.parametrize(
    "name",
    [
        "data/weights/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_0",
        "data/aotinductor/m/a.so",
        "x.py",
    ],
)
def test_parts_that_a_plain_network_does_not_have_are_refused(program, tmp_path, name):
    path = rewritten(program[1], tmp_path / "x.pt2", lambda members: members.update({name: b"x"}))

    assert name in refusal(path)


def nodes(content):
    return content["graph_module"]["graph"]["nodes"]


CHANGES = {
    "a call of another function": lambda c: nodes(c)[0].update(target="torch.hub.load"),
    "an operator of a library": lambda c: nodes(c)[0].update(target="torch.ops.evil.run.default"),
    "a dunder name": lambda c: nodes(c)[0].update(name="__class__"),
    "code in an argument's name": lambda c: nodes(c)[0]["inputs"][0].update(name="x=exec('1')"),
    "code in a parameter's name": lambda c: c["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
        parameter_name='0"),print("'
    ),
    "code in a key": lambda c: c["graph_module"]["graph"]["tensor_values"].update({"a();b": {}}),
    "an object": lambda c: nodes(c)[0]["inputs"][0].update(arg={"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
    "an operator as argument": lambda c: nodes(c)[0]["inputs"][0].update(arg={"as_operator": "torch.hub.load"}),
    "a type of its own": lambda c: c["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "os.path", "context": "null", "children_spec": []}]'
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_could_become_code_is_refused(program, tmp_path, what):
    text = refusal(rewritten(program[1], tmp_path / "x.pt2", editing(MODEL, CHANGES[what])))

    assert "refused" in text


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').mkdir('trap')",
        "Symbol('s0').func",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "Symbol('a b')",
        "open('x')",
        "exec",
        "1 +",
    ],
)
def test_symbolic_sizes_are_arithmetic_or_refused(program, tmp_path, expression):
    def change(content):
        text = json.dumps(content)
        assert "expr_str" in text
        for value in content["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = expression

    assert "expr_str" in refusal(rewritten(program[1], tmp_path / "x.pt2", editing(MODEL, change)))


def test_code_that_checks_inputs_is_left_out(program, tmp_path):
    trap = tmp_path / "trap"
    code = f"__import__('os').mkdir({str(trap)!r}) is None"
    path = rewritten(program[1], tmp_path / "x.pt2", editing(MODEL, lambda c: c.update(guards_code=[code])))

    loaded, inputs = load_exported(path)
    loaded(*inputs)

    assert not trap.exists()


def test_outputs_of_a_class_that_is_not_installed_become_a_dict(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.layer(x), "twice": 2 * x}

    def change(content):
        signature = content["graph_module"]["module_call_graph"][0]["signature"]
        assert "builtins.dict" in signature["out_spec"]
        last = signature["out_spec"].replace("builtins.dict", "transformers.modeling_outputs.NamedOutput")
        signature["out_spec"] = last

    model, x = Named().eval(), torch.randn(2, 3)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "named.pt2")

    loaded, _ = load_exported(rewritten(tmp_path / "named.pt2", tmp_path / "x.pt2", editing(MODEL, change)))

    found = loaded(x)
    assert list(found) == ["logits", "twice"]
    torch.testing.assert_close(found["logits"], model(x)["logits"])


def test_files_that_are_no_archives_are_damaged(program, tmp_path):
    (tmp_path / "junk.pt2").write_bytes(b"junk" * 50)
    (tmp_path / "half.pt2").write_bytes(program[1].read_bytes()[:2000])
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("net/version", "1")

    for name in ("junk", "half", "other"):
        assert "damaged" in refusal(tmp_path / f"{name}.pt2")
    assert "no such file" in refusal(tmp_path / "none.pt2")
