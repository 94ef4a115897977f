"""Exported programs made to do harm: refused before anything runs, whatever op they call, write to or compute."""

import json
import math
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import l0prune
from l0prune.errors import ModelSpecError
from l0prune.sources.allowed_ops import ALLOWED, DECLARED_WRITES, FAMILIES, is_allowed, name_of
from l0prune.sources.exported import load_exported, load_exported_program
from l0prune.sources.size_expressions import is_small_arithmetic

COVERED = (Path(__file__).parents[1] / "fixtures" / "ops_of_architectures.txt").read_text().split()


def saved(model, inputs, path):
    torch.export.save(torch.export.export(model, inputs), path)
    return path


def refusal(path, load=load_exported):
    with pytest.raises(ModelSpecError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400 + len(str(path))
    assert str(path) in text
    return text


class Copies(nn.Module):
    """Writes its input to a tensor that it makes."""

    def forward(self, x):
        return torch.zeros(4, dtype=torch.uint8).copy_(x)


def mapping(path, victim):
    """The program at `path` with a file mapped into memory in the place of the tensor that it makes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("models/model.json"))
    content = json.loads(members[name])
    node = next(node for node in content["graph_module"]["graph"]["nodes"] if "zeros" in node["target"])
    node["target"] = "torch.ops.aten.from_file.default"
    values = {"filename": {"as_string": str(victim)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
    kept = [given for given in node["inputs"] if given["name"] == "dtype"]
    node["inputs"] = [{"name": key, "arg": value, "kind": 1} for key, value in values.items()] + kept
    members[name] = json.dumps(content).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


@pytest.fixture
def attack(tmp_path):
    """A program that overwrites `victim` when it runs, and the two paths."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"safe")
    path = saved(Copies(), (torch.zeros(4, dtype=torch.uint8),), tmp_path / "attack.pt2")
    mapping(path, victim)
    return path, victim


@pytest.mark.parametrize("load", [load_exported, load_exported_program])
def test_a_program_that_maps_a_file_is_refused(attack, load):
    path, victim = attack

    assert "from_file" in refusal(path, load)
    assert victim.read_bytes() == b"safe"


def test_the_attack_would_have_worked_in_torch(attack):
    path, victim = attack

    torch.export.load(path).module()(torch.tensor([112, 119, 110, 33], dtype=torch.uint8))

    assert victim.read_bytes() == b"pwn!"


@pytest.mark.parametrize(
    "target",
    [
        *("aten.from_file.default", "aten.from_file.out", "aten.save.default", "aten.manual_seed.default", "aten.seed.default"),
        *("aten.set_grad_enabled.default", "aten._print.default", "aten.warn.default", "aten.record_stream.default"),
        *("aten.set_.source_Storage", "aten.set_.default", "aten.set_data.default", "aten.resize_.default"),
        *("aten.add.out", "aten.sort.values", "aten.max.dim_max", "aten.add_.t", "aten._foreach_add_.List"),
        *("aten._cufft_set_plan_cache_max_size.default", "aten.format.default", "aten.to_here.default", "aten.wait.default"),
        *("aten.pin_memory.default", "aten.add.nothing", "aten.no_such_op.default", "aten.add", "aten.__class__.default"),
        *("prim.Print.default", "profiler._record_function_enter_new.default", "_c10d_functional.wait_tensor.default"),
        *("aten.fused_moving_avg_obs_fake_quant.default", "aten._fused_moving_avg_obs_fq_helper.default"),
        *("higher_order.while_loop", "higher_order.call_torchbind", "higher_order.print", "quantized.linear.default"),
    ],
)  # fmt: skip
def test_an_op_that_is_more_than_a_function_of_tensors_is_not_allowed(target):
    assert not is_allowed(f"torch.ops.{target}")


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "torch.hub.load", "_operator.attrgetter", "math.factorial", "_operator.lshift"],
)
def test_other_functions_are_not_allowed(target):
    assert not is_allowed(target)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_allowed_op_has_a_pure_schema(family):
    for name in FAMILIES[family]:
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            continue  # torch grows and shrinks; that few are missing is tested below
        allowed = [overload for overload in packet.overloads() if is_allowed(f"torch.ops.aten.{name}.{overload}")]
        assert allowed, f"{name}: none of {packet.overloads()}"
        for overload in allowed:
            schema = getattr(packet, overload)._schema
            text = (
                str(schema).replace("Tensor(a!) self", "", 1)
                if name.endswith("_") or name.startswith("__i")
                else str(schema)
            )
            results = text.rpartition("->")[2]
            arguments = text.removesuffix(results)
            assert "!" not in arguments or name in DECLARED_WRITES, text
            for word in ("Storage", "Stream", "Any", "Dict", "filename", "__torch__", "Future"):
                assert word not in text, text


def test_nearly_all_allowed_ops_exist():
    missing = [name for name in ALLOWED if not hasattr(torch.ops.aten, name)]

    assert len(missing) < 0.05 * len(ALLOWED), missing


def test_no_op_stands_in_two_families():
    assert sum(map(len, FAMILIES.values())) == len(ALLOWED)


def test_every_op_of_the_architectures_of_the_coverage_table_is_allowed():
    assert len(COVERED) > 100
    assert [target for target in COVERED if not is_allowed(target)] == []


def test_functions_have_the_names_that_the_file_gives_them():
    for function in (
        torch.sym_max,
        torch.sym_int,
        torch.sym_sqrt,
        math.floor,
        torch.ops.aten.add.Tensor,
        torch.ops.higher_order.cond,
    ):
        assert is_allowed(name_of(function)), name_of(function)


class Writing(nn.Module):
    """Adds to one of its tensors, or to a view of it."""

    def __init__(self, what, view):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.register_buffer("count", torch.zeros(2, 2))
        self.fixed = torch.ones(2, 2)
        self.what, self.view = what, view

    def forward(self, x):
        tensor = {"made": x + 1, "input": x}.get(self.what)
        tensor = getattr(self, self.what) if tensor is None else tensor
        self.view(tensor).add_(1)
        return x + self.weight + self.count


VIEWS = {
    "itself": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.t(),
    "a row of a slice": lambda tensor: tensor[:1][0],
    "half": lambda tensor: tensor.chunk(2)[1],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("what", ["weight", "fixed"])
def test_a_program_that_writes_to_its_parameters_or_constants_is_refused(what, view, tmp_path):
    path = saved(Writing(what, VIEWS[view]), (torch.ones(2, 2),), tmp_path / "x.pt2")

    assert "writes to" in refusal(path)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("what", ["made", "count", "input"])
def test_a_program_may_write_to_what_it_made_and_to_buffers_and_inputs(what, view, tmp_path):
    path = saved(Writing(what, VIEWS[view]), (torch.ones(2, 2),), tmp_path / "x.pt2")

    loaded, _ = load_exported(path)

    expected = 3.0 if what != "made" else 2.0
    assert loaded(torch.ones(2, 2)).max() == expected


class Squared(nn.Module):
    """Squares the size of its input again and again, and counts as many."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        size = x.shape[0]
        for _ in range(self.times):
            size = size * size
        return x + size


def test_a_size_that_grows_without_end_is_refused(tmp_path):
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    paths = {times: tmp_path / f"{times}.pt2" for times in (2, 6)}
    for times, path in paths.items():
        torch.export.save(torch.export.export(Squared(times), (torch.ones(3),), dynamic_shapes=dynamic), path)

    loaded, _ = load_exported(paths[2])

    assert loaded(torch.ones(3))[0] == 1 + 3**4
    assert refusal(paths[6])


@pytest.mark.parametrize(
    "expression",
    [
        "Pow(Integer(10), Pow(Integer(10), Integer(10)))",
        "Pow(10,Pow(10,10))",
        "Pow(Pow(Pow(Pow(Integer(9), Integer(16)), Integer(16)), Integer(16)), Integer(16))",
        "Pow(Symbol('s0'), Symbol('s0'))",
        "PowByNatural(Integer(2), Integer(1000000000))",
        "10**10**10",
        "factorial(Integer(100000))",
        "Integer(" + "9" * 2000 + ")",
        "Float('1e999999999')",
        "Float('1', precision=1000000000)",
        "Mul(" + ", ".join(["Integer(9999999999999)"] * 200) + ")",
        "(" * 5000 + "1" + ")" * 5000,
        "Not(" * 900 + "True" + ")" * 900,
        "Integer('7')",
        "Symbol(Symbol('s0'))",
    ],
)
def test_an_expression_that_would_keep_sympy_busy_is_refused_at_once(expression):
    start = time.process_time()

    assert not is_small_arithmetic(expression)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(3), Symbol('s0', positive=True, integer=True))",
        "Add(Pow(Symbol('s0', integer=True), Integer(2)), Integer(-1))",
        "Pow(Symbol('s0', integer=True), Rational(1, 2))",
        "FloorDiv(Add(Symbol('s0', integer=True), Integer(-3)), Integer(2))",
        "Max(Integer(1), Mul(Rational(1, 2), Symbol('u0', integer=True)))",
        "Mul(Float('0.5', precision=53), ToFloat(Symbol('s0', integer=True)))",
        "-1", "s0", "True",
    ],
)  # fmt: skip
def test_an_expression_of_sizes_is_understood(expression):
    assert is_small_arithmetic(expression)


class Bessel(nn.Module):
    """Ends with a function that no graph from a file may call."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return torch.special.bessel_j0(self.last(self.first(x).relu()))


def test_a_graph_that_would_be_refused_is_not_saved(tmp_path):
    torch.manual_seed(0)
    model, x = Bessel().double(), torch.randn(2, 4, dtype=torch.float64)
    gated = l0prune.inject(model, l0prune.trace(model, x))
    gated.freeze((torch.arange(gated.n_gates) % 2).double())
    compact = l0prune.shrink(gated)

    folder = l0prune.save(compact, tmp_path / "compact")

    manifest = json.loads((folder / "manifest.json").read_text())
    assert "special_bessel_j0" in manifest["no_graph_because"]
    assert not (folder / "model.pt2").exists()
    torch.testing.assert_close(l0prune.load(folder, base=model)(x), compact(x))
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())
