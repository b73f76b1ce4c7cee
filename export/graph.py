"""Build a component, or the fused one-step generator, as a fixed-shape module that any backend can lower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from torch import Tensor, nn

from flashbulb.distill.components import DType, TensorSpec
from flashbulb.distill.schedule import OneStep
from flashbulb.export.artifact import ArtifactComponent
from flashbulb.export.rewrites import MASK, Piece, Residual, Rewrite, UnsupportedModel, apply, attend, cut

if TYPE_CHECKING:
    from flashbulb.distill.checkpoint import Checkpoint


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """One fixed-shape program to lower."""

    component: ArtifactComponent
    """What it computes."""
    module: nn.Module
    """The rewritten module, frozen, in fp32."""
    inputs: tuple[TensorSpec, ...]
    """Its arguments, in order."""
    outputs: tuple[TensorSpec, ...]
    """Its results, in order."""
    origins: dict[str, tuple[str, Piece]]
    """Parameter name -> component, and the piece of its weight in the checkpoint."""

    def example(self) -> tuple[Tensor, ...]:
        """Make arguments of the right shapes: token ids inside every vocabulary, seeded noise elsewhere."""
        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.ones(s.shape, dtype=getattr(torch, s.dtype))
            if s.dtype.startswith("int")
            else torch.randn(s.shape, generator=generator)
            for s in self.inputs
        )

    def program(self) -> torch.export.ExportedProgram:
        """Export with fixed shapes."""
        with torch.no_grad():
            return torch.export.export(self.module, self.example(), strict=False)


class TextEncoder(nn.Module):
    """CLIP's text transformer (arXiv 2103.00020) with a fixed length and a finite causal mask."""

    def __init__(self, model: Any, length: int, *, penultimate: bool, pooled: bool) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.text_projection = model.text_projection if pooled else None
        self.heads = int(model.config.num_attention_heads)
        self.eos = int(model.config.eos_token_id)
        self.length, self.penultimate = length, penultimate
        if not pooled and penultimate:
            self.text_model.encoder.layers = self.text_model.encoder.layers[:-1]
            self.text_model.final_layer_norm = None
        mask = torch.full((length, length), MASK).triu(1)
        self.register_buffer("mask", mask.reshape(1, length, length), persistent=False)
        self.register_buffer("before", torch.ones(length, length).triu(1), persistent=False)
        self.positions = nn.Parameter(
            self.text_model.embeddings.position_embedding.weight.detach()[None, :length].clone(),
            requires_grad=False,
        )
        self.text_model.embeddings.position_embedding = None

    def forward(self, input_ids: Tensor) -> Any:
        """Encode ids of shape [1, t] into [1, t, d], and for SDXL's second encoder also [1, p]."""
        x = self.text_model.embeddings.token_embedding(input_ids) + self.positions
        states = [x]
        for layer in self.text_model.encoder.layers:
            states.append(self._layer(layer, states[-1]))
        if self.penultimate and self.text_projection is None:
            return states[-1]
        final = self.text_model.final_layer_norm(states[-1])
        if self.text_projection is None:
            return final
        return states[-2], self.text_projection(self._pool(final, input_ids))

    def _layer(self, layer: Any, x: Tensor) -> Tensor:
        attn, h = layer.self_attn, layer.layer_norm1(x)
        q, k, v = attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)
        x = x + attn.out_proj(attend(q, k, v, self.heads, float(attn.scale), cast(Tensor, self.mask)))
        mlp = layer.mlp
        return x + mlp.fc2(mlp.activation_fn(mlp.fc1(layer.layer_norm2(x))))

    def _pool(self, final: Tensor, ids: Tensor) -> Tensor:
        """Pick the row of the first end token: a product with a one-hot row, which every backend has."""
        # transformers keeps eos 2 for old configs that mean "the largest id".
        eos = ids.amax(dim=1, keepdim=True) if self.eos == 2 else self.eos
        ends = (ids == eos).to(final.dtype)
        earlier = ends @ cast(Tensor, self.before)
        first = ends * (1.0 - earlier.clamp(max=1.0))
        return torch.bmm(first.reshape(1, 1, self.length), final).reshape(1, final.shape[2])


class UnetBody(nn.Module):
    """The blocks of a `UNet2DConditionModel`, whatever feeds them their embedding."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        _check_unet(unet.config)
        self.unet = unet

    def body(self, sample: Tensor, hidden: Tensor, temb: Tensor | None) -> Tensor:
        """Predict from z of shape [1, c, h, w], text states [1, t, d] and an embedding [1, e]."""
        unet = self.unet
        x = unet.conv_in(sample)
        skips: tuple[Tensor, ...] = (x,)
        for block in unet.down_blocks:
            x, added = block(hidden_states=x, temb=temb, **_text(block, hidden))
            skips += added
        if unet.mid_block is not None:
            x = unet.mid_block(x, temb, **_text(unet.mid_block, hidden))
        for block in unet.up_blocks:
            count = len(block.resnets)
            skips, taken = skips[:-count], skips[-count:]
            x = block(hidden_states=x, temb=temb, res_hidden_states_tuple=taken, **_text(block, hidden))
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)) if unet.conv_norm_out is not None else x)


def _text(block: Any, hidden: Tensor) -> dict[str, Tensor]:
    """Give text states to the blocks that attend to them."""
    return {"encoder_hidden_states": hidden} if getattr(block, "has_cross_attention", False) else {}


class OneTimestepUnet(UnetBody):
    """A UNet at one timestep: its embedding is folded into biases, in fp32, and is no input any more."""

    def __init__(self, unet: Any, timestep: int, image_size: int) -> None:
        super().__init__(unet)
        emb = unet.time_embedding(unet.time_proj(torch.tensor([timestep])).float())
        self.sdxl = unet.config.addition_embed_type == "text_time"
        if self.sdxl:
            unet.add_embedding = _fold_added(unet, emb, image_size)
        else:
            for block in (m for m in unet.modules() if isinstance(m, Residual)):
                block.fold(emb)
        unet.time_proj = unet.time_embedding = unet.add_time_proj = None

    def forward(self, sample: Tensor, hidden: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Predict from z of shape [1, c, h, w] and text states [1, t, d]; SDXL also takes [1, p]."""
        return self.body(sample, hidden, self.unet.add_embedding(pooled) if self.sdxl else None)


REMEDIES = {"time_cond_proj_dim": "fix its guidance scale with `flashbulb compress --guidance 3.0`"}
"""What makes a UNet fit that the contract has no input for."""


def _check_unet(config: Any) -> None:
    """Refuse conditionings that the fixed contract has no input for."""
    wanted = {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None,),
        "encoder_hid_dim": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "center_input_sample": (False,),
        "addition_embed_type": (None, "text_time"),
    }
    for name, known in wanted.items():
        got = getattr(config, name, None)
        if got not in known:
            raise UnsupportedModel(
                f"wanted {name} in {known}, got {got!r}; {REMEDIES.get(name, 'it has no one-step form here')}"
            )


def _fold_added(unet: Any, emb: Tensor, size: int) -> nn.Module:
    """Fold SDXL's size and crop ids (arXiv 2307.01952, section 2.2) and the timestep into two biases."""
    ids = torch.tensor([size, size, 0, 0, size, size])
    known = unet.add_time_proj(ids).reshape(1, -1).float()
    old = unet.add_embedding
    pooled = old.linear_1.in_features - known.shape[1]
    if pooled <= 0:
        raise UnsupportedModel(f"wanted six added ids, got room for {old.linear_1.in_features} features")
    first = cut(old.linear_1, Piece(weight="linear_1.weight", columns=(0, pooled)))
    first.bias = nn.Parameter(
        first.bias + (known @ old.linear_1.weight[:, pooled:].T)[0], requires_grad=False
    )
    old.linear_1 = first
    old.linear_2.bias = nn.Parameter(old.linear_2.bias + emb[0], requires_grad=False)
    return cast(nn.Module, old)


class VaeDecoder(nn.Module):
    """The decoder of an `AutoencoderKL` or `AutoencoderTiny`, ending in an image in [0, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv = getattr(vae, "post_quant_conv", None)
        self.decoder = vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        """Decode [1, c, h, w], already divided by the latent scale, into [1, 3, H, W]."""
        z = latent if self.post_quant_conv is None else self.post_quant_conv(latent)
        return (self.decoder(z) * 0.5 + 0.5).clamp(0.0, 1.0)


class Generator(nn.Module):
    """Token ids and noise in, picture out: text encoder, UNet, the affine of the one step, decoder."""

    def __init__(self, parts: dict[str, nn.Module], step: OneStep) -> None:
        super().__init__()
        self.text_encoder, self.unet, self.vae_decoder = (
            parts[n] for n in ("text_encoder", "unet", "vae_decoder")
        )
        self.text_encoder_2 = parts.get("text_encoder_2")
        self.sigma = step.init_noise_sigma
        from_noise, from_output = step.coefficients()
        self.from_noise, self.from_output = from_noise / step.latent_scale, from_output / step.latent_scale
        self.shift = step.latent_shift

    def forward(self, *inputs: Tensor) -> Tensor:
        """Draw one picture.  Backends of lower precision keep the `affine_*` values in fp32."""
        noise = inputs[-1]
        sample = noise if self.sigma == 1.0 else noise * self.sigma
        out = self.unet(sample, *self._text(*inputs[:-1]))
        affine_noise = noise * (self.from_noise * self.sigma)
        affine_output = out * self.from_output
        affine_latent = affine_noise + affine_output
        if self.shift:
            affine_latent = affine_latent + self.shift
        return self.vae_decoder(affine_latent)

    def _text(self, input_ids: Tensor, input_ids_2: Tensor | None = None) -> tuple[Tensor, ...]:
        hidden = self.text_encoder(input_ids)
        if self.text_encoder_2 is None:
            return (hidden,)
        second, pooled = self.text_encoder_2(input_ids_2)
        return torch.cat([hidden, second], dim=-1), pooled


class SdxlGenerator(Generator):
    """The fused generator with two token inputs."""

    def forward(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """Draw one picture."""
        return super().forward(input_ids, input_ids_2, noise)


class SdGenerator(Generator):
    """The fused generator with one token input."""

    def forward(self, input_ids: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """Draw one picture."""
        return super().forward(input_ids, noise)


def specs(checkpoint: Checkpoint) -> dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """Give the inputs and outputs of every component; a tensor has one name wherever it appears."""

    def spec(name: str, *shape: int, dtype: DType = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    latent, size, length = checkpoint.latent_shape, checkpoint.image_size, checkpoint.text_length
    ids = spec("input_ids", 1, length, dtype="int32")
    image = spec("image", 1, 3, size, size)
    sample, out = spec("sample", 1, *latent), spec("out", 1, *latent)
    noise, decoded = spec("noise", 1, *latent), spec("latent", 1, *latent)
    width = int(checkpoint.config("text_encoder")["hidden_size"])
    table = {"text_encoder": ((ids,), (spec("hidden", 1, length, width),))}
    text, given = [ids], [sample, spec("hidden", 1, length, width)]
    if checkpoint.is_sdxl:
        second = checkpoint.config("text_encoder_2")
        ids_2 = spec("input_ids_2", 1, length, dtype="int32")
        pooled = spec("pooled", 1, int(second["projection_dim"]))
        hidden_2 = spec("hidden_2", 1, length, int(second["hidden_size"]))
        table["text_encoder"] = ((ids,), (spec("hidden_1", 1, length, width),))
        table["text_encoder_2"] = ((ids_2,), (hidden_2, pooled))  # type: ignore[assignment]
        text.append(ids_2)
        given = [sample, spec("hidden", 1, length, width + int(second["hidden_size"])), pooled]
    table["unet"] = (tuple(given), (out,))  # type: ignore[assignment]
    table["vae_decoder"] = ((decoded,), (image,))
    table["generator"] = ((*text, noise), (image,))  # type: ignore[assignment]
    return table  # type: ignore[return-value]


def module(checkpoint: Checkpoint, component: str, step: OneStep, rewrite: Rewrite) -> nn.Module:
    """Load and rewrite one component, or the fused generator."""
    with torch.no_grad():
        if component == "generator":
            return fused({n: module(checkpoint, n, step, rewrite) for n in checkpoint.components()}, step)
        if component.startswith("text_encoder"):
            model = apply(checkpoint.load(component), rewrite)
            second = component == "text_encoder_2"
            return TextEncoder(model, checkpoint.text_length, penultimate=checkpoint.is_sdxl, pooled=second)
        if component == "unet":
            unet = apply(checkpoint.load("unet"), rewrite)
            return OneTimestepUnet(unet, step.timestep, checkpoint.image_size)
        return VaeDecoder(apply(checkpoint.load("vae"), rewrite))


def fused(parts: dict[str, nn.Module], step: OneStep) -> Generator:
    """Join components that share their weights with the joined one."""
    return (SdxlGenerator if "text_encoder_2" in parts else SdGenerator)(parts, step)


def build(
    checkpoint: Checkpoint, step: OneStep, rewrite: Rewrite, *, generator: bool = True
) -> tuple[Graph, ...]:
    """Build all components of a checkpoint, and the generator that shares their weights, for one backend."""
    parts = {n: module(checkpoint, n, step, rewrite).eval() for n in checkpoint.components()}
    modules: dict[str, nn.Module] = dict(parts)
    if generator:
        modules["generator"] = fused(parts, step).eval()
    table = specs(checkpoint)
    return tuple(
        Graph(
            component=cast(ArtifactComponent, name),
            module=part.requires_grad_(False),
            inputs=table[name][0],
            outputs=table[name][1],
            origins=origins(part, name),
        )
        for name, part in modules.items()
    )


def origins(part: nn.Module, component: str) -> dict[str, tuple[str, Piece]]:
    """Say for each parameter of a rewritten module where in the checkpoint it comes from."""
    found = {}
    for prefix, owner in part.named_modules():
        for name, _ in owner.named_parameters(recurse=False):
            path = f"{prefix}.{name}" if prefix else name
            folder, inside = (
                path.split(".", 1) if component == "generator" and "." in path else (component, path)
            )
            found[path] = (folder, _piece(owner, folder, inside, name))
    return found


def _piece(owner: nn.Module, folder: str, inside: str, name: str) -> Piece:
    """Translate a parameter's path in our module to the checkpoint's, cut or whole."""
    inside = inside.removeprefix("unet.") if folder == "unet" else inside
    if inside == "positions":
        return Piece(weight="text_model.embeddings.position_embedding.weight")
    piece: Piece | None = getattr(owner, "flashbulb_piece", None)
    if piece is None or name != "weight":
        return Piece(weight=inside)
    parent = inside.split(".")[:-2]
    return msgspec.structs.replace(piece, weight=".".join([*parent, piece.weight]))
