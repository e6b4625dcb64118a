"""The names that a candidate may use, as an allowlist: a name that is not listed here is refused.

A name is listed when it is a pure function of its arguments: it draws no random numbers, reads or writes no file, keeps
no state, changes none of its arguments, compiles nothing and returns no object from which such things can be reached.
In-place methods (``add_``) and ``out=`` are absent for that reason.
"""

from __future__ import annotations

from poise_core.candidate import identity


class LanguageError(Exception):
    """The source uses something outside the candidate language; the message names the lines and tells what to do."""


def names(text: str) -> frozenset[str]:
    """Split a text into a set of names."""
    return frozenset(text.split())


_ELEMENTWISE = names("""
    abs absolute acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil
    clamp clamp_max clamp_min clip copysign cos cosh deg2rad digamma div divide eq erf erfc erfinv exp exp2 expm1 fix
    float_power floor floor_divide fmax fmin fmod frac ge greater greater_equal gt heaviside hypot i0 isclose isfinite isinf
    isnan isneginf isposinf ldexp le lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and
    logical_not logical_or logical_xor logit lt maximum minimum mul multiply mvlgamma nan_to_num ne neg negative not_equal
    polygamma positive pow rad2deg reciprocal relu remainder round rsqrt sgn sigmoid sign signbit sin sinc sinh sqrt square sub
    subtract tan tanh true_divide trunc where xlogy
""")

_REDUCTIONS = names("""
    addbmm addmm addmv all allclose amax amin aminmax any argmax argmin argsort baddbmm bincount bmm corrcoef count_nonzero cov
    cummax cummin cumprod cumsum diff dist dot equal histc inner kthvalue logcumsumexp logsumexp log_softmax matmul max mean
    median min mm mode msort mv nanmean nanmedian nanquantile nansum norm numel prod quantile softmax sort std sum topk trace
    unique unique_consecutive var vdot
""")

_SHAPES = names("""
    argwhere broadcast_to chunk clone diag diagonal flatten flip fliplr flipud gather index_add index_copy index_fill
    index_select masked_select movedim nonzero permute ravel repeat_interleave reshape roll scatter scatter_add scatter_reduce
    select split squeeze swapaxes t take take_along_dim tensor_split tile transpose tril triu unbind unflatten unsqueeze
""")

MODULES: dict[str, frozenset[str]] = {
    "math": names("""
        acos acosh asin asinh atan atan2 atanh cbrt ceil comb copysign cos cosh degrees e erf erfc exp exp2 expm1 fabs factorial
        floor fmod fsum gamma gcd hypot inf isclose isfinite isinf isnan isqrt lcm lgamma log log10 log1p log2 nan perm pi prod
        radians sin sinh sqrt tan tanh tau trunc
    """),
    "collections.abc": names("Mapping"),
    "dataclasses": names("dataclass"),
    "torch": _ELEMENTWISE
    | _REDUCTIONS
    | _SHAPES
    | names("""
        Tensor arange bool broadcast_tensors bucketize cat cdist column_stack concat cross cumulative_trapezoid dstack e einsum
        eye finfo float float32 float64 full full_like hstack inf int int32 int64 isin linspace long nan nn no_grad ones
        ones_like outer pi scalar_tensor searchsorted special stack std_mean tensor tensordot trapezoid trapz var_mean vander
        vstack zeros zeros_like
    """),
    "torch.nn": names("functional"),
    "torch.nn.functional": names("""
        avg_pool1d binary_cross_entropy binary_cross_entropy_with_logits celu cosine_similarity elu gelu hardshrink hardsigmoid
        hardtanh huber_loss kl_div l1_loss leaky_relu log_softmax logsigmoid margin_ranking_loss max_pool1d mish mse_loss normalize
        one_hot pad relu relu6 selu sigmoid silu smooth_l1_loss soft_margin_loss softmax softmin softplus softshrink softsign
        tanh tanhshrink
    """),
    "torch.special": names("""
        digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammainc gammaincc gammaln i0 i0e i1 i1e log1p log_ndtr log_softmax
        logit logsumexp multigammaln ndtr ndtri polygamma psi round sinc softmax xlog1py xlogy zeta
    """),
    "poise_core.contract": names("Advantages Dynamics LossInputs LossOutputs RolloutBatch"),
    "poise_core.reductions": names("""
        group_count group_max group_mean group_min group_quantile group_rank group_std group_sum log_ratio masked_mean
        masked_sum sequence_lengths to_tokens
    """),
    "__future__": names("annotations"),
}
"""Importable module -> the members that may be named."""

TYPES = names("Tensor Dynamics LossInputs Mapping RolloutBatch")
"""Importable names that stand in annotations only; ``Tensor(n)`` would be uninitialised memory."""

BUILTINS = frozenset(identity.BUILTINS)
"""Built-in functions that may be called."""

ANNOTATIONS = names("str object")
"""Built-in names that may stand in annotations beside ``BUILTINS``; no annotation is ever evaluated."""

INPLACE_POSITION: dict[str, int] = {
    **dict.fromkeys(names("relu relu6 selu silu mish hardsigmoid"), 1), **dict.fromkeys(names("celu elu leaky_relu"), 2),
    "hardtanh": 3, "normalize": 4, "tensordot": 3, "norm": 4,
}  # fmt: skip
"""Function of ``torch`` or ``torch.nn.functional`` -> how many arguments may be given by position: the next one is ``inplace`` or
``out``. Methods of tensors have neither."""

TENSOR_MEMBERS = (
    _ELEMENTWISE
    | _REDUCTIONS
    | _SHAPES
    | names("""
        T bool contiguous detach device dim double dtype eps expand expand_as float indices int is_floating_point item
        long mT masked_fill masked_scatter narrow ndim new_full new_ones new_tensor new_zeros repeat reshape_as shape
        size tiny to tolist type_as view view_as
    """)
)
"""Attributes and methods of tensors and of what tensor functions return."""

CONTAINER_MEMBERS = names("copy get items keys values")
"""Methods of dicts and lists that leave them as they are."""

CHANGING_MEMBERS = names("append extend setdefault update")
"""Methods that change a list or dict; allowed as a statement on an object that the function made itself."""

CONTRACT_MEMBERS = names("""
    correctness format_valid truncated group_ids completion_mask old_logprobs ref_logprobs entropies values train_mask
    carry logprobs advantages mask step progress entropy kl reward_mean completion_length clip_fraction
    all_fail_fraction grad_norm max_completion_length controller token_loss metrics
""")
"""Fields of the dataclasses in ``poise_core.contract``."""

MEMBERS = TENSOR_MEMBERS | CONTAINER_MEMBERS | CONTRACT_MEMBERS
"""Every attribute that may be read."""

KEYWORDS = names("""
    abs_tol alpha append as_tuple atol axis beta bins bound carry ceil_mode chunks correction count_include_pad decimals default
    delta descending device diagonal dim dim0 dim1 dims dtype empty end eps equal_nan exponent fill_value include_self index
    input interpolation invert k keepdim kernel_size lambd largest left length log_target margin mask max maximum metrics min
    minimum n nan neginf negative_slope num_classes offset ord other p pad padding pos_weight posinf prepend q reduce reduction
    rel_tol repeats return_counts return_inverse right rounding_mode rtol shifts side size sorted source src stable start step
    steps strict stride target tensor tensors threshold ties token_loss train_mask unbiased value values weight where
""")
"""Keyword arguments of the functions above; ``out``, ``requires_grad``, ``generator`` and ``key`` are left out."""
