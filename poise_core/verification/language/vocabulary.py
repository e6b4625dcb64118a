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
    abs absolute acos add asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or ceil clamp clamp_max clamp_min clip
    copysign cos cosh div divide eq erf erfc exp exp2 expm1 floor floor_divide fmax fmin frac ge greater greater_equal
    gt heaviside hypot isclose isfinite isinf isnan le lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2
    logical_and logical_not logical_or logical_xor logit lt maximum minimum mul multiply nan_to_num ne neg negative
    not_equal positive pow reciprocal relu remainder round rsqrt sgn sigmoid sign signbit sin sinc sinh sqrt square sub
    subtract tan tanh true_divide trunc where xlogy
""")

_REDUCTIONS = names("""
    all allclose amax amin aminmax any argmax argmin argsort bincount count_nonzero cummax cummin cumprod cumsum
    diff dot
    equal kthvalue logcumsumexp logsumexp log_softmax matmul max mean median min mm nanmean nanmedian nanquantile nansum
    norm numel prod quantile softmax sort std sum topk unique unique_consecutive var
""")

_SHAPES = names("""
    broadcast_to clone flatten flip gather index_add index_copy index_fill index_select masked_select movedim nonzero
    permute ravel repeat_interleave reshape roll scatter scatter_add scatter_reduce select split squeeze t take
    take_along_dim tensor_split tile transpose tril triu unbind unflatten unsqueeze
""")

MODULES: dict[str, frozenset[str]] = {
    "math": names("""
        acos asin atan atan2 ceil copysign cos cosh e erf erfc exp expm1 fabs floor hypot inf isfinite isinf isnan lgamma log
        log10 log1p log2 nan pi sin sinh sqrt tan tanh tau
    """),
    "collections.abc": names("Mapping"),
    "dataclasses": names("dataclass"),
    "torch": _ELEMENTWISE
    | _REDUCTIONS
    | _SHAPES
    | names("""
        Tensor arange bool broadcast_tensors bucketize cat column_stack concat dstack einsum eye finfo float float32
        float64 full full_like hstack inf int int32 int64 linspace long nan nn no_grad ones
        ones_like outer pi scalar_tensor searchsorted stack std_mean tensor var_mean vstack zeros zeros_like
    """),
    "torch.nn": names("functional"),
    "torch.nn.functional": names("""
        celu cosine_similarity elu gelu hardsigmoid hardtanh huber_loss l1_loss leaky_relu log_softmax logsigmoid mish
        mse_loss normalize one_hot pad relu relu6 selu sigmoid silu smooth_l1_loss softmax softmin softplus softsign
        tanh
    """),
    "poise_core.contract": names("Advantages Dynamics LossInputs LossOutputs RolloutBatch"),
    "poise_core.reductions": names("""
        group_count group_max group_mean group_min group_quantile group_std group_sum log_ratio masked_mean masked_sum
        sequence_lengths to_tokens
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
    "hardtanh": 3, "normalize": 4,
}  # fmt: skip
"""Function of ``torch.nn.functional`` -> how many arguments may be given by position: the next one is ``inplace`` or ``out``."""

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
    alpha append as_tuple atol axis beta bound carry correction decimals default delta descending device diagonal dim
    dim0 dim1 dims dtype empty end eps equal_nan exponent fill_value include_self index input interpolation k keepdim largest left
    length mask max maximum metrics min minimum nan neginf negative_slope num_classes ord other p pad posinf prepend q
    reduce reduction repeats return_counts return_inverse right rounding_mode rtol shifts side size sorted source src
    stable start step steps strict tensor tensors threshold token_loss train_mask unbiased value values weight where
""")
"""Keyword arguments of the functions above; ``out``, ``requires_grad``, ``generator`` and ``key`` are left out."""
