"""A walk over all operations: every one is asked for all its parts, and these are held against torch's schemas and functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from l0prune.ops.operation import Operation, operation_of, operations, sized_call
from l0prune.sources.allowed_ops import ALLOWED

KNOWN = dict(operations())
NAMES = sorted(KNOWN)


def overloads(name: str) -> list[torch._ops.OpOverload]:
    """Forms of an operation that work on tensors and return a new one."""
    packet = getattr(torch.ops.aten, name)
    forms = [getattr(packet, overload) for overload in packet.overloads()]
    tensors = ("Tensor", "List[Tensor]", "Optional[Tensor]")
    return [
        form
        for form in forms
        if not any(a.is_out for a in form._schema.arguments)
        and any(str(value.type) in tensors for value in (*form._schema.arguments, *form._schema.returns))
    ]


def arguments(name: str) -> dict[str, str]:
    """Name -> type of the arguments of all forms of an operation."""
    return {a.name: str(a.type) for form in overloads(name) for a in form._schema.arguments}


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_of_an_operation_of_torch_and_has_a_rule(name):
    assert overloads(name)
    assert KNOWN[name].rule is not Operation().rule
    assert all(operation_of(form) is KNOWN[name] for form in overloads(name))


OUTSIDE_FILES = {
    "fused_moving_avg_obs_fake_quant": "writes past the ends of buffers that a file may give it",
    "_index_put_impl": "what `index_put` calls inside",
    "cpu": "a device is named in `to`",
    "cuda": "a device is named in `to`",
}


def test_what_has_a_rule_may_be_called_by_a_file_unless_it_is_said_why_not():
    assert set(KNOWN) - ALLOWED == set(OUTSIDE_FILES)


# Integers among the arguments. Those that may measure units are rewritten when units go, or the units are pinned.
MEASURES = {"size", "shape", "sizes", "normalized_shape", "groups", "num_groups", "pad", "split_size", "split_sizes", "chunks",
            "sections", "indices", "start", "end", "length"}  # fmt: skip
PINS_ALONG = {
    "unfold": "the size of a window",
    "slice_scatter": "units along the slice are pinned",
    "channel_shuffle": "every group loses the same channels",
    "native_channel_shuffle": "every group loses the same channels",
    "_assert_tensor_metadata": "graphs go without it",
}
MEASURES_NOT = {
    *(
        "dim",
        "dims",
        "dim0",
        "dim1",
        "axis",
        "axis0",
        "axis1",
        "ch_axis",
        "source",
        "destination",
        "start_dim",
        "end_dim",
        "dimension",
    ),
    *(
        "dims_self",
        "dims_other",
        "path",
        "stride",
        "padding",
        "dilation",
        "output_padding",
        "kernel_size",
        "output_size",
    ),
    *(
        "index",
        "idx",
        "step",
        "shifts",
        "k",
        "diagonal",
        "repeats",
        "n",
        "s",
        "upscale_factor",
        "downscale_factor",
        "total_length",
    ),
    *(
        "num_layers",
        "padding_idx",
        "mode",
        "dtype",
        "out_dtype",
        "layout",
        "memory_format",
        "decimals",
        "divisor_override",
    ),
    *("interpolation_mode", "padding_mode", "zero_point", "quant_min", "quant_max"),
}
"""Dimensions, positions, steps in space, kinds: no number of units along a dimension that goes on."""


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_measure_units_are_rewritten(name):
    integers = {a for a, kind in arguments(name).items() if kind in ("int", "List[int]", "Optional[int]")}

    assert integers <= MEASURES | MEASURES_NOT, "say whether these measure units"
    measures = bool(integers & MEASURES) and name not in PINS_ALONG
    assert measures <= (KNOWN[name].rewrite is not None)
    assert (KNOWN[name].sizes is not None) == measures


@pytest.mark.parametrize("name", NAMES)
def test_what_behaves_otherwise_in_training_names_the_argument(name):
    found = arguments(name).keys() & {"train", "training", "use_input_stats"}

    assert KNOWN[name].training == (found.pop() if found else None)


# Functions that code calls. A function of the name of an op becomes that op.
PLACES = (torch, Tensor, F)
LEFT_IN_CODE = {
    "narrow": "its integers are matched; the call itself is not given others",
    "tensor_split": "as `narrow`",
    "unsafe_split": "as `narrow`",
    "unsafe_chunk": "as `narrow`",
    "pad": "as `narrow`",
    "constant_pad_nd": "as `narrow`",
    **dict.fromkeys(("convolution", "_convolution"), "what F.conv2d and the others call inside"),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm"), "modules of these kinds are cut"),
}
OTHER_ORDER = {"batch_norm": {torch.batch_norm}}
"""The arguments of torch.batch_norm have another order than those of F.batch_norm, which libraries call."""


def functions_called(name: str) -> set:
    """Functions of torch, and methods of tensors, of the name of an op."""
    in_linalg = name.startswith("linalg_")
    found = {getattr(place, name.removeprefix("linalg_"), None) for place in ((torch.linalg,) if in_linalg else PLACES)}
    return {function for function in found if callable(function)}


@pytest.mark.parametrize("name", [n for n in NAMES if KNOWN[n].sizes is not None and n not in LEFT_IN_CODE])
def test_calls_with_sizes_are_found_in_code(name):
    known = KNOWN[name]
    found = known.makers if known.makers else known.call.functions if known.call else ()

    assert functions_called(name) <= set(found)


def test_calls_with_sizes_are_one_kind_each():
    for known in KNOWN.values():
        for function in known.call.functions if known.call else ():
            assert sized_call(function) is known.call


@pytest.mark.parametrize("name", [n for n in NAMES if KNOWN[n].normalises is not None])
def test_norms_and_statistics_are_found_in_code(name):
    assert functions_called(name) - OTHER_ORDER.get(name, set()) <= set(KNOWN[name].normalises.functions)


def test_norms_of_units_along_a_dimension_have_one_kind_each():
    kinds = [known.normalises.kind for known in KNOWN.values() if known.normalises is not None]

    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_one_rule_and_the_same_arguments_have_the_same_parts(name):
    parts = ("rewrite", "sizes", "attributes", "training", "closed", "makers")
    for other in NAMES:
        same = KNOWN[other].rule is KNOWN[name].rule and list(arguments(other)) == list(arguments(name))
        if same and not KNOWN[name].is_pointwise:
            assert {p: getattr(KNOWN[name], p) for p in parts} == {p: getattr(KNOWN[other], p) for p in parts}, other


# Functions of each element alone.
def unary_functions() -> dict[str, torch._ops.OpOverload]:
    """Pointwise operations that a file may call, with one tensor and nothing else."""
    found = {}
    for name in sorted(ALLOWED):
        form = getattr(getattr(torch.ops.aten, name, None), "default", None)
        if form is None or name.endswith("_") or not operation_of(form).is_pointwise:
            continue
        tensors = [a for a in form._schema.arguments if str(a.type) == "Tensor"]
        others = [a for a in form._schema.arguments if a not in tensors and not a.has_default_value()]
        if len(tensors) == 1 and not others and [str(r.type) for r in form._schema.returns] == ["Tensor"]:
            found[name] = form
    return found


UNARY = unary_functions()
NO_WEIGHTS = {
    *(
        "logical_not",
        "bitwise_not",
        "isnan",
        "isinf",
        "isfinite",
        "isposinf",
        "isneginf",
        "signbit",
        "angle",
        "zero",
        "copy",
    ),
    *("clamp", "clip", "conj", "_conj", "conj_physical", "resolve_conj", "resolve_neg", "real", "imag"),
}
"""Questions, parts of complex numbers, and what needs a number beside the tensor."""


@pytest.mark.parametrize("name", sorted(UNARY.keys() - NO_WEIGHTS))
def test_functions_that_are_zero_at_zero_say_so(name):
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    y = UNARY[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x)

    goes_through_zero = bool((y == 0).all() and slope.isfinite().all())
    assert goes_through_zero == (operation_of(UNARY[name]).zeros is not None)


# Products with weights: of 4 channels they make 6, in 1 or 2 groups.
def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def convolutions(n: int, groups: int):
    x, space, none, one = tensor(2, 4, *[5] * n), [3] * n, [0] * n, [1] * n
    weight, transposed = tensor(6, 4 // groups, *space), tensor(4, 6 // groups, *space)
    yield f"conv{n}d", (x, weight, tensor(6), one, none, one, groups)
    yield f"conv_transpose{n}d", (x, transposed, tensor(6), one, none, none, groups, one)
    yield "convolution", (x, weight, tensor(6), one, none, one, False, none, groups)
    yield "convolution", (x, transposed, None, one, none, one, True, none, groups)
    yield "_convolution", (x, weight, tensor(6), one, none, one, False, none, groups, False, False, False, False)


PRODUCTS = [
    ("linear", (tensor(2, 3, 4), tensor(6, 4), tensor(6))),
    ("linear", (tensor(2, 4), tensor(6, 4))),
    ("matmul", (tensor(2, 3, 4), tensor(4, 6))),
    ("mm", (tensor(2, 4), tensor(4, 6))),
    ("bmm", (tensor(2, 3, 4), tensor(2, 4, 6))),
    ("addmm", (tensor(6), tensor(2, 4), tensor(4, 6))),
    *(call for n in (1, 2, 3) for groups in (1, 2) for call in convolutions(n, groups)),
]


def test_every_product_with_weights_is_among_the_examples():
    assert {name for name in NAMES if KNOWN[name].contracts is not None} == {name for name, _ in PRODUCTS}


@pytest.mark.parametrize(("name", "args"), PRODUCTS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PRODUCTS)])
def test_a_product_of_nothing_is_its_bias_and_of_a_part_what_the_part_of_the_weight_makes(name, args):
    graph = torch.fx.Graph()
    held = {graph.placeholder(f"x{i}"): x for i, x in enumerate(args) if isinstance(x, Tensor)}
    nodes = iter(held)
    form = next(f for f in overloads(name) if f._overloadname in ("default", "", "input"))
    layer = KNOWN[name].contracts(
        graph.call_function(form, tuple(next(nodes) if isinstance(x, Tensor) else x for x in args))
    )

    def result(changed: dict) -> Tensor:
        tensors = iter({**held, **changed}.values())
        return form(*(next(tensors) if isinstance(x, Tensor) else x for x in args))

    x, weight = held[layer.activation], held[layer.weight]
    nothing = result({layer.activation: torch.zeros_like(x)})
    lie = [1] * nothing.dim()
    lie[layer.channel] = -1
    bias = weight.new_zeros(weight.shape[layer.out] * layer.groups) if layer.bias is None else held[layer.bias]
    assert torch.equal(nothing, bias.view(lie).expand_as(nothing))

    def without_first(tensor: Tensor, dim: int) -> Tensor:
        return tensor.index_fill(dim, torch.tensor([0]), 0)

    if layer.dim is not None and weight.shape[layer.dim] == x.shape[layer.channel]:
        part = result({layer.activation: without_first(x, layer.channel)})
        torch.testing.assert_close(part, result({layer.weight: without_first(weight, layer.dim)}), atol=1e-10, rtol=0)
