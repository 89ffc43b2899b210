"""The quantizers: pure functions latent weight -> codes and scales, and the table of them. Imports torch for types alone.

A quantizer gives integer codes and the scales they are multiplied by: `w_q = codes * scales`, whatever it is. So what the
forward pass sees is to the last bit what a file of codes can hold. `none` alone has no codes.

A scale is a statistic of the latent weights: of the whole matrix it is given (one matrix A or B of one adapter, its real
entries only), or of each rank component (a row of A, a column of B). A quantizer may learn its scales instead.

Straight-through: the gradient of the latent weight is the gradient of the quantized one. So nothing here needs autograd;
the engine quantizes once per optimizer step and passes the gradient on.

In every quantizer below a matrix (or component) of zeros has scale 0 and stays zero, so that B starts as an exact no-op.

A new quantizer is a function here under `@quantizer(…)`, and nothing else: the spec's key, the file of codes, the sizes
in a plan, PEFT's layers, the documentation and the tests go by the table (CONTRIBUTING.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from torch import Tensor

    Quantizer = str
    Codes = tuple[Tensor, Tensor]
    """Codes in the shape and dtype of the weight, and scales that broadcast over it: (…, 1, 1), (…, rows, 1) or
    (…, 1, columns)."""

Granularity = Literal["tensor", "component"]
"""What has a scale of its own: the matrix, or each rank component (a row of A, a column of B)."""

Axes = tuple[int, ...]
"""What a scale's statistic runs over: (-2, -1) the whole matrix, (-1,) each row, (-2,) each column. Counted from the end,
since a weight may be a stack of matrices."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The codes that a quantizer gives."""

    lowest: int
    step: int
    """From one code to the next."""
    count: int

    @property
    def per_byte(self) -> int:
        """How many codes a byte holds: 8, 4, 2 or 1 of 2, 4, 16 or 256 levels; of three five (3**5 = 243)."""
        codes = 1
        while self.count ** (codes + 1) <= 256:
            codes += 1
        return codes


@dataclass(frozen=True, slots=True)
class WeightQuantizer:
    """A line of the table."""

    formula: str
    """The quantized weight, and where it comes from, as the documentation prints it."""
    levels: Levels | None
    """None: full precision, which has no codes."""
    encode: Callable[[Tensor, Axes], Codes] | None = None
    """The latent weight (…, rows, columns), a floating dtype, and the axes of a scale -> codes and scales in its dtype;
    None where scales are no statistic. Of a stack of matrices each is quantized by itself."""
    learns_scales: bool = False
    """A scale for each row of A and of B is trained beside the latent weights (`double_binary`)."""


QUANTIZERS: Final[dict[str, WeightQuantizer]] = {
    "none": WeightQuantizer("`w`: classic LoRA, QLoRA over an NF4 base", None)
}
"""Name -> quantizer, in the order in which they are shown."""


def quantizer(
    name: str, lowest: int, step: int, count: int, formula: str
) -> Callable[[Callable[[Tensor, Axes], Codes]], Callable[[Tensor, Axes], Codes]]:
    """Puts a function into the table.

    Args:
        lowest, step, count: `Levels`.
        formula: `WeightQuantizer.formula`.
    """

    def register(encode: Callable[[Tensor, Axes], Codes]) -> Callable[[Tensor, Axes], Codes]:
        QUANTIZERS[name] = WeightQuantizer(formula, Levels(lowest, step, count), encode)
        return encode

    return register


@quantizer("binary", -1, 2, 2, "`sign(w - mean(w)) * mean|w|` (BitNet)")
def binary(w: Tensor, axes: Axes) -> Codes:
    """1 bit: `sign(w - mean(w)) * mean|w|` (BitNet, arXiv 2310.11453, eq. 1-3).

    As in eq. 2 an entry equal to the mean is -1: `torch.sign`, which the article has, would give it a third code.
    """
    return _signs(w - _mean(w, axes)), _mean(w.abs(), axes)


@quantizer("ternary", -1, 1, 3, "`clip(round(w / (mean|w|/2 + 1e-4)), -1, 1) * mean|w|` (the article's)")
def ternary(w: Tensor, axes: Axes) -> Codes:
    """1.58 bits: `clip(round(w / (mean|w| / 2 + 1e-4)), -1, 1) * mean|w|`, the variant of BitNet b1.58 in "Bit-LoRA as an
    application of BitNet and 1.58 bit neural network technologies" (Towards Data Science, 2024)."""
    scale = _mean(w.abs(), axes)
    return (w / (scale / 2 + 1e-4)).round().clamp(-1, 1), scale


@quantizer("absmean", -1, 1, 3, "`clip(round(w / mean|w|), -1, 1) * mean|w|` (BitNet b1.58)")
def absmean(w: Tensor, axes: Axes) -> Codes:
    """1.58 bits: `clip(round(w / mean|w|), -1, 1) * mean|w|` (BitNet b1.58, arXiv 2402.17764, eq. 1-3).

    The paper's epsilon beside the mean is left out: it is there against a division by zero, and next to the small values
    of a young B it would be a dead zone.
    """
    scale = _mean(w.abs(), axes)
    return _divided(w, scale).round().clamp(-1, 1), scale


@quantizer(
    "twn", -1, 1, 3, "`sign(w)` where `|w| > 0.7 mean|w|`, else 0, times the mean of those `|w|` (arXiv 1605.04711)"
)
def twn(w: Tensor, axes: Axes) -> Codes:
    """1.58 bits: `sign(w)` where `|w| > 0.7 mean|w|`, else 0, times the mean of those `|w|` (Ternary Weight Networks, arXiv
    1605.04711, eq. 3-6): nearly the closest ternary matrix there is."""
    size = w.abs()
    kept = (size > 0.7 * _mean(size, axes)).to(w.dtype)
    scale = (size * kept).sum(axes, keepdim=True) / kept.sum(axes, keepdim=True).clamp_min(1)
    return w.sign() * kept, scale


@quantizer("int2", -3, 2, 4, "the nearest of `{-1.5, -0.5, 0.5, 1.5} * 1.25 mean|w|`")
def int2(w: Tensor, axes: Axes) -> Codes:
    """2 bits: the nearest of `{-3, -1, 1, 3} * s` with `s = 0.625 mean|w|`.

    Levels between the steps (mid-rise), because four codes have no middle: a level at 0 would leave three symmetric ones,
    which is `absmean`. A step of 2 s = 1.25 mean|w| is the best of four levels for a Gaussian (0.996 standard
    deviations; Max, "Quantizing for minimum distortion", 1960). From the largest weight, as in `int4`, the step
    would be several times that and nearly all weights would fall on two levels.
    """
    scale = 0.625 * _mean(w.abs(), axes)
    return (_divided(w, 2 * scale).floor().clamp(-2, 1) * 2).add_(1), scale


@quantizer("int4", -8, 1, 16, "`round(w / s) * s`, `s = max|w| / 7`")
def int4(w: Tensor, axes: Axes) -> Codes:
    """4 bits, symmetric: `round(w / s) * s` with `s = max|w| / 7`, codes -7 to 7 (absmax, arXiv 2208.07339, section 2)."""
    return _absmax(w, axes, 7)


@quantizer("int8", -128, 1, 256, "`round(w / s) * s`, `s = max|w| / 127`")
def int8(w: Tensor, axes: Axes) -> Codes:
    """8 bits, symmetric: `round(w / s) * s` with `s = max|w| / 127`, codes -127 to 127 (as `int4`)."""
    return _absmax(w, axes, 127)


def double_binary(w: Tensor, learned: Tensor) -> Codes:
    """1 bit with learned scales: `sign(w) * s`, a scale s for each row of A and of B (LoRDBA, arXiv 2605.24058).

    With it an adapter is two sign matrices between three diagonal ones, B's rows being the outputs. The scales are trained
    beside the latent weights, which pass their gradient `s * dL/dw_q` straight through the sign, and are used as float16
    numbers: there are as many as outputs, so that in float32 they would weigh as much as the signs of rank 32.

    Args:
        w: (…, rows, columns).
        learned: (…, rows, 1), float32 or float64.
    """
    return _signs(w), learned.half().to(w.dtype)


QUANTIZERS["double_binary"] = WeightQuantizer(
    "`sign(w) * s`, a learned `s` for each row of A and of B (LoRDBA, arXiv 2605.24058)",
    Levels(-1, 2, 2),
    learns_scales=True,
)

DOUBLE_BINARY_B: Final = 0.01
"""Standard deviation of B's first latent weights in `double_binary`: only their signs are seen, so they cannot be zero."""

if not TYPE_CHECKING:
    Quantizer = Literal[tuple(QUANTIZERS)]  # what a configuration is validated by


def _mean(w: Tensor, axes: Axes) -> Tensor:
    # Of a single matrix the same kernel as `w.mean()`, so that its scale is the textbook's to the last bit.
    return w.mean().view(1, 1) if w.ndim == len(axes) else w.mean(axes, keepdim=True)


def _signs(w: Tensor) -> Tensor:
    return (w > 0).to(w.dtype).mul_(2).sub_(1)


def _divided(w: Tensor, by: Tensor) -> Tensor:
    return w / (by + (by == 0))  # where a scale is 0, so is every weight


def _absmax(w: Tensor, axes: Axes, most: int) -> Codes:
    scale = w.abs().amax(axes, keepdim=True) / most
    return _divided(w, scale).round().clamp(-most, most), scale
