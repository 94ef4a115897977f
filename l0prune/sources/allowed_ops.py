"""What the graph of an exported program may call: functions of tensors, and nothing that reaches beyond them.

`torch.ops.aten` holds much that no network needs and that files, the process or torch itself would notice: `from_file` maps a
file into memory (and a later `copy_` writes it), `save` writes one, `manual_seed` and `set_grad_enabled` change what the whole
process does. So an op may be called if it stands in one of the families below, and its schema agrees. The observers of
`torch.ao.quantization` (`fused_moving_avg_obs_fake_quant`) stand in none: torch writes a minimum for every row into their buffers
without a look at how long those are, so that a file could write to any memory of the process.
"""

import functools
import re
from typing import Any

import torch

__all__ = ["ALLOWED", "DECLARED_WRITES", "FAMILIES", "UNDECLARED_WRITES", "is_allowed", "name_of", "writes_to"]

# Names of torch.ops.aten, a family a line; a name that ends in _ writes to its first argument.
_TABLE = """
arithmetic: add add_ sub sub_ rsub mul mul_ multiply multiply_ div div_ divide divide_ true_divide subtract subtract_
fused arithmetic: addcmul addcmul_ addcdiv addcdiv_ lerp lerp_ hypot ldexp copysign
division: remainder remainder_ fmod fmod_ floor_divide floor_divide_ reciprocal reciprocal_ gcd lcm
sign: neg neg_ negative negative_ abs abs_ absolute absolute_ sign sign_ sgn signbit positive
powers: pow pow_ float_power square square_ sqrt sqrt_ rsqrt rsqrt_
exponentials: exp exp_ exp2 expm1 log log_ log2 log10 log1p logaddexp logaddexp2 xlogy special_xlogy
special exponentials: special_xlog1py special_expm1 special_exp2 special_log1p special_logit special_erfc special_round
trigonometry: sin sin_ cos cos_ tan tanh tanh_ sinh cosh asin acos atan atan2 asinh acosh atanh sinc special_sinc deg2rad
trigonometry by other names: arcsin arccos arctan arctan2 arcsinh arccosh arctanh
special functions: erf erf_ erfc erfinv special_erf special_erfinv lgamma digamma i0 special_i0 special_i1 special_ndtr logit
rounding: ceil ceil_ floor floor_ round round_ trunc trunc_ fix frac
limits: clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ clip clip_ maximum minimum fmax fmin nan_to_num nan_to_num_
comparison: eq ne lt le gt ge equal greater greater_equal less less_equal not_equal isclose allclose isin heaviside
in-place comparison: eq_ ne_ lt_ le_ gt_ ge_
kinds of numbers: isnan isinf isfinite isposinf isneginf is_nonzero isreal
logic: logical_and logical_or logical_not logical_xor logical_and_ logical_or_ logical_not_ where
bits: bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift bitwise_right_shift
in-place bits: bitwise_and_ bitwise_or_ bitwise_not_
bits by operator: __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__
complex numbers: complex polar real imag angle conj _conj resolve_conj conj_physical resolve_neg view_as_real view_as_complex
rectifiers: relu relu_ relu6 relu6_ leaky_relu leaky_relu_ prelu _prelu_kernel rrelu rrelu_ elu elu_ celu celu_ selu selu_
smooth activations: gelu gelu_ silu silu_ mish mish_ softplus sigmoid sigmoid_ log_sigmoid log_sigmoid_forward special_expit
hard activations: hardtanh hardtanh_ hardsigmoid hardsigmoid_ hardswish hardswish_ hardshrink softshrink threshold threshold_
gated activations: glu
softmax: softmax _softmax _safe_softmax _masked_softmax log_softmax _log_softmax logsumexp logcumsumexp special_softmax
dropout: dropout dropout_ native_dropout alpha_dropout alpha_dropout_ feature_dropout feature_dropout_ feature_alpha_dropout
convolution: conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
products: linear matmul mm bmm addmm baddbmm addbmm mv addmv dot vdot inner outer addr ger einsum bilinear tensordot kron
products of several: chain_matmul linalg_multi_dot linalg_vecdot linalg_matmul _trilinear cross linalg_cross
linear algebra: linalg_inv inverse linalg_inv_ex linalg_det linalg_slogdet linalg_cholesky linalg_cholesky_ex linalg_qr det
linear systems: linalg_solve linalg_solve_triangular triangular_solve cholesky_solve linalg_eigh linalg_svd matrix_exp
powers of matrices: linalg_matrix_power matrix_power linalg_matrix_exp
norms of tensors: norm linalg_norm linalg_vector_norm linalg_matrix_norm frobenius_norm renorm dist
distances: cdist _cdist_forward pdist _pdist_forward pairwise_distance cosine_similarity _euclidean_dist
attention: scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
whole attention layers: _native_multi_head_attention _transformer_encoder_layer_fwd _transform_bias_rescale_qkv
recurrent layers: lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
packed sequences: _pack_padded_sequence _pad_packed_sequence pad_sequence
batch norm: batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training instance_norm
batch norm inside: _native_batch_norm_legit_functional _batch_norm_with_update _batch_norm_no_update _batch_norm_impl_index
other norms: layer_norm native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm _weight_norm
reparametrised weights: _weight_norm_interface norm_except_dim
average pooling: avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive pooling inside: _adaptive_avg_pool2d _adaptive_avg_pool3d
max pooling: max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
max pooling with indices: max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d
resampling by nearest: upsample_nearest1d upsample_nearest2d upsample_nearest3d
resampling by the nearest centre: _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
resampling: upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
resampling with antialiasing: _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa
grids: grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator
patches: im2col col2im unfold pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
padding: pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d _pad_circular _pad_enum
padding by repeating: replication_pad1d replication_pad2d replication_pad3d
embedding: embedding embedding_bag _embedding_bag _embedding_bag_forward_only one_hot
sums: sum nansum mean nanmean prod cumsum cumsum_ cumprod cumprod_ trace count_nonzero cumulative_trapezoid trapezoid diff
extremes: max min amax amin aminmax argmax argmin cummax cummin median nanmedian mode kthvalue quantile nanquantile
spread: var std var_mean std_mean cov corrcoef histc bincount
truth of many: any all _is_all_true _is_any_true
order: sort argsort msort topk searchsorted bucketize unique_consecutive unique_dim _unique2
shapes: view reshape _unsafe_view flatten unflatten ravel view_as reshape_as squeeze squeeze_ unsqueeze unsqueeze_
axes: permute transpose transpose_ t t_ swapaxes swapdims movedim moveaxis numpy_T mT mH matrix_H adjoint rot90
expanding: expand expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile meshgrid
more axes: atleast_1d atleast_2d atleast_3d
joining: cat concat concatenate stack hstack vstack dstack column_stack block_diag cartesian_prod combinations
splitting: chunk split split_with_sizes unsafe_chunk unsafe_split unsafe_split_with_sizes tensor_split unbind hsplit vsplit
slicing: slice select narrow diagonal as_strided slice_scatter select_scatter diagonal_scatter as_strided_scatter
copying views: view_copy permute_copy transpose_copy t_copy expand_copy squeeze_copy unsqueeze_copy slice_copy select_copy
more copying views: split_copy split_with_sizes_copy unbind_copy unfold_copy as_strided_copy alias_copy detach_copy
order of entries: flip fliplr flipud roll
diagonals: diag diag_embed diagflat tril triu tril_ triu_ tril_indices triu_indices fill_diagonal_ vander
indexing: index _unsafe_index index_select index_add index_copy index_fill gather take take_along_dim masked_select
places of what is not zero: nonzero argwhere nonzero_static nonzero_numpy
writing by index: index_put index_put_ _unsafe_index_put index_add_ index_copy_ index_fill_ index_reduce put
scattering: scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ masked_scatter masked_scatter_
filling: fill fill_ zero zero_ masked_fill masked_fill_ copy copy_
making: zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty eye arange
more making: linspace logspace scalar_tensor empty_strided empty_permuted new_empty_strided _efficientzerotensor
windows: hann_window hamming_window blackman_window bartlett_window kaiser_window
chance: rand rand_like randn randn_like randint randint_like randperm bernoulli multinomial normal normal_functional poisson
in-place chance: bernoulli_ normal_ uniform_ exponential_ random_ uniform
fourier: fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn
more fourier: fft_fftshift fft_ifftshift fft_fftfreq fft_rfftfreq fft_hfft fft_ihfft _fft_c2c _fft_c2r _fft_r2c stft istft
types: to _to_copy type_as result_type contiguous clone alias detach detach_ lift lift_fresh lift_fresh_copy
numbers of tensors: item _local_scalar_dense Bool Int Float ScalarImplicit IntImplicit FloatImplicit
sizes: sym_size sym_numel sym_stride sym_storage_offset sym_is_contiguous size numel stride dim _shape_as_tensor
questions: is_floating_point is_complex is_signed is_same_size is_contiguous
checks: _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size
functional checks: _functional_assert_async _functional_assert_scalar _functional_sym_constrain_range
losses: mse_loss l1_loss smooth_l1_loss huber_loss cross_entropy_loss nll_loss nll_loss_nd nll_loss2d kl_div
binary losses: binary_cross_entropy binary_cross_entropy_with_logits
more losses: nll_loss_forward nll_loss2d_forward cosine_embedding_loss hinge_embedding_loss
fake quantisation: fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
"""
FAMILIES = {
    family: tuple(names.split()) for family, _, names in (line.partition(": ") for line in _TABLE.split("\n") if line)
}
"""Family -> names of its ops in `torch.ops.aten`."""
ALLOWED = frozenset(name for names in FAMILIES.values() for name in names)

UNDECLARED_WRITES = frozenset({"batch_norm", "native_batch_norm", "instance_norm", "_batch_norm_impl_index"})
"""Write to their running statistics in training mode, without their schema saying so."""
DECLARED_WRITES = frozenset({"_native_batch_norm_legit", "_batch_norm_with_update"})
"""Write to their running statistics in training mode, as their schema says."""

# A schema may pass these and nothing else: no storage, stream, file handle, object or any type.
_VALUES = re.compile(
    r"(Optional\[)?(List\[)?(Optional\[)?(Tensor|int|float|bool|number|str|complex|Device)\]*|Optional\[Generator\]"
)
_RESULTS = re.compile(r"(List\[)?(Tensor|int|float|bool|number)\]?")
_FILE_NAMES = {"filename", "file_name"}

# What is no tensor operation: arithmetic of sizes, and a part of the graph run with another setting, which ends with that part.
OTHERS = re.compile(
    r"torch\.ops\.higher_order\.(wrap_with_(set_grad_enabled|autocast)|cond)"
    r"|torch\.sym_(int|float|not|max|min|sqrt|ite|sum)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")


@functools.cache
def is_allowed(target: str) -> bool:
    """Whether a graph may call this, by the name that an exported program has for it.

    Args:
        target: As in `torch.ops.aten.add.Tensor`, `_operator.mul` or `torch.sym_max`.
    """
    if OTHERS.fullmatch(target):
        return True
    found = _ATEN.fullmatch(target)
    if found is None or found[1] not in ALLOWED:
        return False
    packet = getattr(torch.ops.aten, found[1], None)
    overload = getattr(packet, found[2], None)
    return isinstance(overload, torch._ops.OpOverload) and _is_pure(overload._schema)


def name_of(target: Any) -> str:
    """The name that an exported program has for what a node calls, as `is_allowed` takes it."""
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"torch.ops.higher_order.{target.name()}"
    name = str(getattr(target, "__name__", target)).removeprefix("_")  # torch.sym_sqrt calls itself _sym_sqrt
    return f"{getattr(target, '__module__', '')}.{name}"


def writes_to(schema: torch.FunctionSchema) -> tuple[int, ...]:
    """Places of the arguments that a call writes to, as its schema declares."""
    return tuple(
        place
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _is_pure(schema: torch.FunctionSchema) -> bool:
    """Whether a call takes and gives tensors and numbers only, and writes to nothing but the first argument of an in-place op."""
    name = schema.name.removeprefix("aten::")
    types = [str(argument.type) for argument in schema.arguments]
    results = [str(value.type) for value in schema.returns]
    in_place = re.fullmatch(r".*[^_]_|__i\w+__", name) is not None
    writes = writes_to(schema)
    return (
        all(map(_VALUES.fullmatch, types))
        and all(map(_RESULTS.fullmatch, results))
        and not _FILE_NAMES & {argument.name for argument in schema.arguments}
        and (writes == ((0,) if in_place else ()) or name in DECLARED_WRITES)
    )
