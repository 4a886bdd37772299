"""What operators do to a constant that all entries of their input come out times.

By their names in torch, without the `_` of those that work in place, which do the same.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LINEAR = _names(
    "neg clone _to_copy contiguous dropout native_dropout relu abs sum mean amax amin max min nansum cumsum "
    "constant_pad_nd index gather embedding index_select repeat flip roll topk sort unfold avg_pool1d "
    "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d "
    "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle col2im triu tril copy fill zero "
    "repeat_interleave upsample_nearest1d std im2col select_backward masked_select leaky_relu "
    "upsample_bilinear2d upsample_bicubic2d lift_fresh _unsafe_index conj real imag view_as_real_copy polar "
    "positive _embedding_bag _fft_r2c _fft_c2r _fft_c2c"
)
SUMS = _names("sum nansum")
VECTOR_NORMS = _names("linalg_vector_norm norm")
ALIKE = _names(
    "add sub rsub cat stack where masked_fill index_add index_put _index_put_impl index_copy scatter "
    "scatter_add lerp hypot masked_scatter"
)
POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}
PRODUCTS = _names("mm bmm mv dot vdot matmul addmm baddbmm linear convolution _trilinear")
NORMS = _names(
    "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update _fused_rms_norm"
)
SOFTMAX = _names("_softmax softmax _safe_softmax")
DISTANCES = _names("_cdist_forward cdist _euclidean_dist")
ATTENTION = _names(
    "_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_fused_attention_overrideable"
)
COMPARISONS = _names("gt ge lt le")
CLAMPS = _names("clamp clamp_min clamp_max")
# What bends or steps at numbers of its own: within one stretch a run shows nothing of them.
STEPS = _names(
    "_local_scalar_dense floor ceil trunc round frac hardtanh hardsigmoid hardswish softshrink hardshrink "
    "huber_loss smooth_l1_loss"
)
# What does so at given numbers, or where tensors meet.
CUTS = (COMPARISONS | CLAMPS | STEPS) | _names(
    "threshold maximum minimum fmax fmin remainder fmod floor_divide bucketize searchsorted"
)
BENDS = _names("relu abs leaky_relu _prelu_kernel sign sgn signbit heaviside")  # those that do so at zero
ADDS = _names("add sub rsub")
ZEROS = _names("empty empty_strided new_empty new_empty_strided empty_like zeros new_zeros zeros_like")
NO_SCALE = _names(
    "eq ne isnan isinf sign argmax argsort argmin isneginf nonzero ones_like full_like new_ones signbit"
)
