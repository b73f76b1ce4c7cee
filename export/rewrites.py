"""Rewrite diffusers and transformers modules into forms that mobile runtimes take whole.

Every rewrite is equal to its original up to float rounding, is for inference with a batch of one, and keeps
the names of the weights, so that an encoding made for a checkpoint still finds its weight.  Where a weight is
cut in two, the pieces remember where they come from (`Piece`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import msgspec
import torch
from torch import Tensor, nn

_EXTEND = "extend flashbulb.export.rewrites"
NormForm = Literal["native", "primitive", "guarded"]
MASK = -1e4
"""Additive mask of attention: finite, inside fp16, and far below any score."""


class Rewrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which forms a backend wants; attention, feed-forward and residual blocks have one form for all."""

    norms: NormForm = "native"
    """`native` operators, `primitive` means and products, or those `guarded` against fp16 overflow."""
    broadcast_upsample: bool = False
    """Upsample by a broadcast multiply instead of a resize operator."""


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a checkpoint's weight that a rewritten module holds."""

    weight: str
    """Name of the whole weight, relative to the module that was replaced."""
    rows: tuple[int, int] | None = None
    """First and last-plus-one output row, or all."""
    columns: tuple[int, int] | None = None
    """First and last-plus-one input column, or all."""


class UnsupportedModel(ValueError):
    """A checkpoint has a part that no rewrite covers."""


def normalise(x: Tensor, dims: tuple[int, ...], eps: float, guarded: bool) -> Tensor:
    """Subtract the mean and divide by the standard deviation over some axes.

    The guarded form divides by the largest magnitude before squaring: in fp16 the square of 256 already
    overflows.  `d / sqrt(mean(d^2) + eps) == u / sqrt(mean(u^2) + (sqrt(eps) / m)^2)` with `u = d / m`.
    """
    centred = x - x.mean(dims, keepdim=True)
    if not guarded:
        return centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)
    peak = centred.abs().amax(dims, keepdim=True).clamp(1e-3, 6e4)
    unit = centred / peak
    # A tensor over a tensor: Core ML's reciprocal adds 1e-4 to what it inverts.
    floor = torch.full_like(peak, math.sqrt(eps)) / peak
    return unit * torch.rsqrt((unit * unit).mean(dims, keepdim=True) + floor * floor)


class FlatGroupNorm(nn.Module):
    """Group normalisation (arXiv 1803.08494) from means and products over a 4-D view."""

    def __init__(self, norm: nn.GroupNorm, guarded: bool) -> None:
        super().__init__()
        self.groups, self.eps, self.guarded = norm.num_groups, norm.eps, guarded
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, of shape [1, c, ...]."""
        shape, channels = x.shape, x.shape[1]
        groups = x.reshape(1, self.groups, channels // self.groups, math.prod(shape[2:]))
        flat = normalise(groups, (2, 3), self.eps, self.guarded).reshape(shape)
        affine = (1, channels, *(1 for _ in shape[2:]))
        return flat * self.weight.reshape(affine) + self.bias.reshape(affine)


class FlatLayerNorm(nn.Module):
    """Layer normalisation (arXiv 1607.06450) of the last axis, from means and products."""

    def __init__(self, norm: nn.LayerNorm, guarded: bool) -> None:
        super().__init__()
        self.eps, self.guarded, self.width = norm.eps, guarded, norm.normalized_shape[0]
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, of shape [1, t, d], through a view with the two axes that partitioners want."""
        rows = x.reshape(1, x.shape[-2], 1, self.width)
        return normalise(rows, (2, 3), self.eps, self.guarded).reshape(x.shape) * self.weight + self.bias


class BroadcastUpsample(nn.Module):
    """Nearest-neighbour doubling as a multiplication by ones, in rank five."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("ones", torch.ones(1, 1, factor, 1, factor), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Repeat each pixel of `x`, of shape [1, c, h, w]."""
        _, c, h, w = x.shape
        spread = x.reshape(c, h, 1, w, 1) * cast(Tensor, self.ones)
        return spread.reshape(1, c, h * self.factor, w * self.factor)


class Resize(nn.Module):
    """Nearest-neighbour enlargement with the runtime's own operator."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Repeat each pixel of `x`, of shape [1, c, h, w]."""
        return nn.functional.interpolate(x, scale_factor=self.factor, mode="nearest")


class Upsample(nn.Module):
    """diffusers' `Upsample2D`: enlarge, then convolve."""

    def __init__(self, resize: nn.Module, conv: nn.Module | None) -> None:
        super().__init__()
        self.resize, self.conv = resize, conv

    def forward(self, x: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """Enlarge `x`; sizes are fixed, so the size asked for is the doubled one."""
        large = self.resize(x)
        return large if self.conv is None else self.conv(large)


class SplitGeglu(nn.Module):
    """GEGLU (arXiv 2002.05202) with value and gate as two linear layers instead of one that is cut."""

    def __init__(self, geglu: nn.Module) -> None:
        super().__init__()
        proj = cast(nn.Linear, geglu.proj)
        half = proj.out_features // 2
        self.value = cut(proj, Piece(weight="proj.weight", rows=(0, half)))
        self.gate = cut(proj, Piece(weight="proj.weight", rows=(half, 2 * half)))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return value times the activated gate."""
        return self.value(x) * nn.functional.gelu(self.gate(x))


def cut(linear: nn.Linear, piece: Piece) -> nn.Linear:
    """Copy some rows and columns of a linear layer; a cut of columns keeps the whole bias."""
    rows, columns = slice(*(piece.rows or (None,))), slice(*(piece.columns or (None,)))
    weight = linear.weight.detach()[rows, columns].clone()
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None)
    part.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        part.bias = nn.Parameter(linear.bias.detach()[rows].clone(), requires_grad=False)
    vars(part)["flashbulb_piece"] = piece
    return part


class Residual(nn.Module):
    """diffusers' `ResnetBlock2D` without the operators that do nothing here."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.nonlinearity = block.nonlinearity
        self.time_emb_proj = cast(nn.Module | None, block.time_emb_proj)
        self.conv_shortcut = block.conv_shortcut
        self.scale = float(cast(float, block.output_scale_factor))

    def fold(self, emb: Tensor) -> None:
        """Move the contribution of a constant embedding, [1, d], into the bias of the first convolution."""
        if self.time_emb_proj is not None:
            shift = cast(nn.Linear, self.time_emb_proj)(cast(nn.Module, self.nonlinearity)(emb))[0]
            conv = cast(nn.Conv2d, self.conv1)
            bias = shift if conv.bias is None else conv.bias + shift
            conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
            self.time_emb_proj = None

    def forward(self, x: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Add two activated convolutions to `x`, of shape [1, c, h, w]."""
        act = cast(nn.Module, self.nonlinearity)
        h = cast(nn.Module, self.conv1)(act(cast(nn.Module, self.norm1)(x)))
        if temb is not None and self.time_emb_proj is not None:
            h = h + self.time_emb_proj(act(temb)).reshape(1, -1, 1, 1)
        h = cast(nn.Module, self.conv2)(act(cast(nn.Module, self.norm2)(h)))
        total = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h  # type: ignore[operator]
        return total if self.scale == 1.0 else total / self.scale


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention (arXiv 1706.03762, eq. 1) as two batched products over heads, in 3-D."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(x.shape[1], heads, x.shape[2] // heads).transpose(0, 1)

    scores = torch.bmm(split(q * scale), split(k).transpose(1, 2))
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return torch.bmm(weights, split(v)).transpose(0, 1).reshape(1, q.shape[1], v.shape[2])


class BmmProcessor:
    """A diffusers attention processor that uses `attend`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend to the text, or to itself; takes [1, t, d] or [1, c, h, w]."""
        if attention_mask is not None:
            raise UnsupportedModel(
                "wanted attention without a mask, got one; extend flashbulb.export.rewrites"
            )
        shape, x = hidden_states.shape, hidden_states
        if len(shape) == 4:
            x = x.reshape(1, shape[1], shape[2] * shape[3])
            x = (x if attn.group_norm is None else attn.group_norm(x)).transpose(1, 2)
        elif attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
        out = attn.to_out[0](attend(q, k, v, attn.heads, float(attn.scale)))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)
        out = out + hidden_states if attn.residual_connection else out
        return out if attn.rescale_output_factor == 1.0 else out / attn.rescale_output_factor


def _attention(attn: Any) -> Any:
    """Give a diffusers attention its processor, unless it has parts that `attend` does not compute."""
    odd = [
        n for n in ("norm_q", "norm_k", "spatial_norm", "norm_cross", "add_k_proj") if getattr(attn, n, None)
    ]
    if odd:
        raise UnsupportedModel(
            f"wanted plain attention, got one with {odd}; extend flashbulb.export.rewrites"
        )
    attn.set_processor(BmmProcessor())
    return attn


def _residual(block: Any) -> Any:
    added = block.time_embedding_norm == "default" or block.time_emb_proj is None
    if block.upsample is not None or block.downsample is not None or not added:
        raise UnsupportedModel(
            f"wanted a residual block that adds its embedding, got {block.time_embedding_norm}; {_EXTEND}"
        )
    return Residual(block)


def _upsample(block: Any, rewrite: Rewrite) -> nn.Module:
    if block.use_conv_transpose or block.norm is not None or not block.interpolate:
        raise UnsupportedModel("wanted a nearest Upsample2D, got another; extend flashbulb.export.rewrites")
    conv = (
        getattr(block, block.name if block.name == "conv" else "Conv2d_0", None) if block.use_conv else None
    )
    return Upsample(_resize(2, rewrite), conv)


def _resize(factor: int, rewrite: Rewrite) -> nn.Module:
    return BroadcastUpsample(factor) if rewrite.broadcast_upsample else Resize(factor)


def _nearest(module: nn.Upsample, rewrite: Rewrite) -> nn.Module:
    if module.mode != "nearest":
        raise UnsupportedModel(
            f"wanted nearest upsampling, got {module.mode}; extend flashbulb.export.rewrites"
        )
    return _resize(int(cast(float, module.scale_factor)), rewrite)


def _table(rewrite: Rewrite) -> dict[type[nn.Module], Callable[[Any], nn.Module]]:
    """List what is replaced by what."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    table: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        Attention: _attention,
        ResnetBlock2D: _residual,
        GEGLU: SplitGeglu,
        Upsample2D: lambda m: _upsample(m, rewrite),
        nn.Upsample: lambda m: _nearest(m, rewrite),
        nn.Dropout: lambda m: nn.Identity(),
    }
    if rewrite.norms != "native":
        guarded = rewrite.norms == "guarded"
        table[nn.GroupNorm] = lambda m: FlatGroupNorm(m, guarded)
        table[nn.LayerNorm] = lambda m: FlatLayerNorm(m, guarded)
    return table


def apply(module: nn.Module, rewrite: Rewrite) -> nn.Module:
    """Replace every part that has a better form, deepest first, in place."""
    table = _table(rewrite)

    def visit(parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            visit(child)
            if type(child) in table:
                setattr(parent, name, table[type(child)](child))

    visit(module)
    return module
