"""Which optimizer suits a network: what it computes with says so, whatever its classes are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from l0prune.flow.channel_flow import ChannelFlow
from l0prune.flow.removable import input_dependent
from l0prune.ops.node import NoRuleError, argument_of, node_shape, op_name

__all__ = ["SuitedOptimizer", "suited_optimizer"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ATTENTION = _names(
    "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention"
    " _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention"
    " _scaled_dot_product_cudnn_attention _native_multi_head_attention _transformer_encoder_layer_fwd"
)
_SOFTMAX = _names("softmax _softmax _safe_softmax _masked_softmax")
_PRODUCTS = _names("matmul mm bmm baddbmm addmm einsum")
_BATCH_NORMS = _names(
    "batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"
    " _native_batch_norm_legit_functional _batch_norm_with_update _batch_norm_no_update _batch_norm_impl_index"
)
_LAYER_NORMS = _names("layer_norm native_layer_norm rms_norm _fused_rms_norm")
_GROUP_NORMS = {"group_norm": "num_groups", "native_group_norm": "group"}
_MOMENTS = _names("mean var var_mean std std_mean")
_SPREADS = _names("std std_mean")
"""Those that are roots already."""
_ROOTS = _names("sqrt rsqrt")
_QUOTIENTS = _names("div mul true_divide divide multiply")
_MASKS = _names("masked_fill where")
_CARRIED = _names(
    "add sub mul div clamp clamp_min maximum dropout native_dropout to _to_copy type_as clone contiguous detach alias"
    " getitem view _unsafe_view reshape expand expand_as transpose permute unsqueeze squeeze reciprocal"
)
_MODULES = (nn.LayerNorm, nn.RMSNorm)
_ATTENDING = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class SuitedOptimizer:
    """What a network is trained with where nobody says.

    Attributes:
        name: As `optimizer` names it.
        because: What the network has, as in "it has attention".
    """

    name: str
    because: str


def suited_optimizer(model: nn.Module, flow: ChannelFlow) -> SuitedOptimizer:
    """For a network with attention, or with more norms over the features of a sample than over batches, adamw; else sgd.

    Gradients of attention differ in scale from matrix to matrix, which the rate of sgd does not know: at one that moves the
    rest of a network, it comes apart. Between batch norms, and in networks without norms, sgd does as well or better.

    Norms that a model writes out (a mean, a root, a quotient) count as those of torch do. Where there is no graph, the classes of
    torch are counted.

    Args:
        model: Dense or gated.
        flow: Of the dense model.

    Source: Zhang et al. (2020), Why are adaptive methods good for attention models?, arXiv:1912.03194, figure 1; Liu et al.
        (2022), arXiv:2201.03545, table 5, for convolutions with layer norms.
    """
    attends, over_features, over_batches = _counted(flow) if flow.tracer != "torch-pruning" else _by_class(model)
    if attends:
        return SuitedOptimizer("adamw", "it has attention")
    if over_features and over_features >= over_batches:
        return SuitedOptimizer("adamw", "its norms are over the features of each sample")
    return SuitedOptimizer(
        "sgd", "its norms are over batches" if over_batches else "it has neither attention nor layer norms"
    )


def _counted(flow: ChannelFlow) -> tuple[bool, int, int]:
    """Whether there is attention, and the number of norms over features and over batches."""
    program = flow.captured.program
    graph: Graph = program.graph
    moving = input_dependent(graph, frozenset(program.graph_signature.user_inputs))
    calls = [node for node in graph.nodes if node.op == "call_function" and node in moving]
    attends = any(_name(node.target) in _ATTENTION or _weighs(node, moving) for node in calls)
    over_features = sum(_is_over_features(node, moving) for node in calls)
    return attends, over_features, sum(_name(node.target) in _BATCH_NORMS for node in calls)


def _by_class(model: nn.Module) -> tuple[bool, int, int]:
    modules = list(model.modules())
    over_features = sum(
        isinstance(module, _MODULES) or (isinstance(module, nn.GroupNorm) and module.num_groups == 1)
        for module in modules
    )
    over_batches = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    return any(isinstance(module, _ATTENDING) for module in modules), over_features, over_batches


def _weighs(node: Node, moving: frozenset[Node]) -> bool:
    """Whether a softmax gives the weights of a sum over what depends on the inputs too."""
    if _name(node.target) not in _SOFTMAX:
        return False
    reached = {node, *_further(node, moving)}
    products = {user for source in reached for user in source.users if _name(user.target) in _PRODUCTS}
    return any(
        any(other in moving and other not in reached for other in product.all_input_nodes) for product in products
    )


def _is_over_features(node: Node, moving: frozenset[Node]) -> bool:
    """Whether a call is a norm over the features of each sample, or the moment that one is written out with."""
    name = _name(node.target)
    if name in _LAYER_NORMS:
        return True
    try:
        if name in _GROUP_NORMS:
            return argument_of(node, _GROUP_NORMS[name]) == 1
        return name in _MOMENTS and _spans_features(node) and _divides(node, moving, is_root=name in _SPREADS)
    except NoRuleError:
        return False


def _name(target: Any) -> str:
    """Name of an operation, the same in place."""
    name = op_name(target)
    return name.removesuffix("_") if not name.endswith("__") else name


def _spans_features(node: Node) -> bool:
    """Whether a moment is taken over one dimension that is not the batch, or over all others."""
    rank = len(node_shape(node.all_input_nodes[0]))
    asked = argument_of(node, "dim")
    if asked is None:
        return False
    dims = {dim % rank for dim in ([asked] if isinstance(asked, int) else asked)}
    return 0 not in dims and (len(dims) == 1 or len(dims) == rank - 1)


def _divides(node: Node, moving: frozenset[Node], *, is_root: bool) -> bool:
    """Whether the root of what follows from `node` scales a tensor that depends on the inputs."""
    for after in [node, *_further(node, moving)]:
        for user in after.users:
            name = _name(user.target)
            others = [other for other in user.all_input_nodes if other is not after]
            if is_root and name in _QUOTIENTS and any(other in moving for other in others):
                return True
            roots = name in _ROOTS or (name == "pow" and user.args[1] in (0.5, -0.5))
            if not is_root and roots and _divides(user, moving, is_root=True):
                return True
    return False


def _further(node: Node, moving: frozenset[Node]) -> Iterator[Node]:
    """The nodes that hold the same numbers in another shape or type, masked, or changed by a constant."""
    for user in node.users:
        name = _name(user.target)
        alone = sum(source in moving for source in user.all_input_nodes) == 1
        if name in _MASKS or (alone and name in _CARRIED):
            yield user
            yield from _further(user, moving)
