"""Pruning: doubling every channel without changing the function, and halving again, proves the coupling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashbulb.compress.coupling import Group, Walk
from flashbulb.compress.methods import channels
from flashbulb.compress.methods.channels import ChannelPrune, best, gather

pytestmark = pytest.mark.filterwarnings("ignore")


def unet(widths=(32, 64, 64), heads=(2, 4, 4), **options):
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=widths,
                attention_head_dim=heads,
                layers_per_block=options.pop("layers_per_block", 1),
                cross_attention_dim=16,
                norm_num_groups=8,
                time_embedding_dim=48,
                **options,
            )
            .eval()
            .requires_grad_(False)
        )


def inputs():
    generator = torch.Generator().manual_seed(1)
    z, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return z, 999, text


def double(small, big):
    """Fill ``big`` with every channel of ``small`` twice; inputs halved, so that the function is the same."""
    state = {name: value.numpy() for name, value in small.state_dict().items()}
    heads = [(n, n) for n in small.config.attention_head_dim]
    slots = list(Walk(small.config, set(state), small.config.block_out_channels, heads).slots())
    groups = {group for slot in slots for group in (*slot.out, *slot.ins)}

    wide = gather(slots, state, {group: np.repeat(np.arange(group.size), 2) for group in groups})
    for slot in slots:
        if slot.ins:
            wide[slot.name] = wide[slot.name] / 2
        if (
            ".to_q." in slot.name
        ):  # q and k are twice as long, and diffusers divides by the root of the head's width
            wide[slot.name] = wide[slot.name] / np.sqrt(2)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in wide.items()}
    weight, bias = channels.refit_time(small, big)
    big.load_state_dict(
        tensors | {"time_embedding.linear_1.weight": weight, "time_embedding.linear_1.bias": bias}
    )
    return big


@pytest.mark.parametrize(("linear", "layers"), [(False, 1), (True, 2)])
def test_doubled_channels_keep_the_function_and_pruning_them_gives_the_original(monkeypatch, linear, layers):
    options = {"use_linear_projection": linear, "layers_per_block": layers}
    small = unet(**options)
    wanted = small(*inputs()).sample
    big = double(small, unet(widths=(64, 128, 128), **options))
    torch.testing.assert_close(big(*inputs()).sample, wanted, atol=2e-4, rtol=0)

    def every_second(group):
        return np.arange(0, group.size, 2)

    monkeypatch.setattr(channels, "best", every_second)
    monkeypatch.setattr(channels, "_heads", lambda count, old, new: count)
    pruned = ChannelPrune(widths=(32, 64, 64)).apply(big)
    kept, original = pruned.state_dict(), small.state_dict()
    assert kept.keys() == original.keys()
    halved = {n for n, v in kept.items() if n.endswith("weight") and not torch.equal(v, original[n])}
    for name in original.keys() - halved - {"time_embedding.linear_1.bias"}:
        torch.testing.assert_close(kept[name], original[name], atol=0, rtol=0)
    for name in halved - {"time_embedding.linear_1.weight"}:
        factor = 1 / (2 * 2**0.5) if ".to_q." in name else 0.5
        torch.testing.assert_close(kept[name], original[name] * factor, atol=1e-6, rtol=1e-5)


def test_pruned_unet_round_trips_through_diffusers(tmp_path):
    from diffusers import UNet2DConditionModel

    big = unet()
    pruned = ChannelPrune(widths=(24, 48, 48)).apply(big)
    assert tuple(pruned.config.block_out_channels) == (24, 48, 48)
    assert sum(p.numel() for p in pruned.parameters()) < 0.65 * sum(p.numel() for p in big.parameters())
    pruned.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    assert torch.equal(again(*inputs()).sample, pruned(*inputs()).sample)
    assert pruned(*inputs()).sample.isfinite().all()


def test_whole_heads_are_removed_where_they_divide_and_heads_get_narrower_where_not():
    assert list(ChannelPrune(widths=(16, 32, 32)).apply(unet()).config.attention_head_dim) == [1, 2, 2]
    narrow = ChannelPrune(widths=(24, 48, 48)).apply(unet(heads=(2, 2, 2)))
    assert list(narrow.config.attention_head_dim) == [2, 2, 2]


def test_the_given_unet_is_not_changed():
    big = unet()
    before = {name: value.clone() for name, value in big.state_dict().items()}
    ChannelPrune(widths=(16, 32, 32)).apply(big)
    assert all(torch.equal(before[name], value) for name, value in big.state_dict().items())


def test_every_norm_keeps_its_groups():
    big = unet()
    heads = [(2, 2), (4, 4), (4, 4)]
    state = {name: value.numpy() for name, value in big.state_dict().items()}
    slots = list(Walk(big.config, set(state), (16, 32, 32), heads).slots())
    channels.score(slots, state)
    kept = {group: best(group) for slot in slots for group in (*slot.out, *slot.ins)}
    assert channels.regrouped(slots, kept) == []


def test_weak_channels_go_first():
    group = Group(8, 4, 4)
    group.score = np.array([1, 9, 8, 2, 9, 1, 1, 8.0])
    np.testing.assert_array_equal(best(group), [1, 2, 4, 7])
    heads = Group(8, 4, 8, unit=4)
    heads.score = np.array([1, 1, 1, 9, 4, 4, 4, 4.0])
    np.testing.assert_array_equal(best(heads), [4, 5, 6, 7])


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((24, 48), "wanted 3 widths"),
        ((24, 48, 128), "multiples of 8"),
        ((20, 48, 48), "multiples of 8"),
        ((24, 48, 40), "neighbours that are equal"),
        ((48, 48, 48), "wanted 3 widths"),
        ((32, 32, 32), "neighbours that are equal"),
        ((24, 56, 56), r"Widths that keep every group: \[\(8, 16, 16\), \(16, 32, 32\), \(24, 48, 48\)\]"),
    ],
)
def test_what_a_config_cannot_express_is_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        ChannelPrune(widths=widths).apply(unet())


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 heads of a stage 96 wide do not divide 40"):
        channels._heads(3, 96, 40)


def test_regrouping_must_be_asked_for():
    assert (
        ChannelPrune(widths=(24, 56, 56), allow_regrouping=True)
        .apply(unet())(*inputs())
        .sample.isfinite()
        .all()
    )


def test_unknown_blocks_are_refused():
    from diffusers import UNet2DConditionModel

    other = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    with pytest.raises(ValueError, match="AttnDownBlock2D"):
        ChannelPrune(widths=(4, 8)).apply(other)


@pytest.mark.parametrize("layers", [1, 2])
def test_shuffling_every_group_keeps_the_function(layers):
    model = unet(layers_per_block=layers)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = [(n, n) for n in model.config.attention_head_dim]
    slots = list(Walk(model.config, set(state), model.config.block_out_channels, heads).slots())
    rng = np.random.default_rng(0)

    def shuffled(group):  # within runs that a norm or a head sees as one
        return rng.permuted(np.arange(group.size).reshape(-1, group.block), axis=1).reshape(-1)

    kept = {group: shuffled(group) for group in {g for slot in slots for g in (*slot.out, *slot.ins)}}
    other = unet(layers_per_block=layers)
    other.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in gather(slots, state, kept).items()})
    assert not torch.equal(other.conv_in.weight, model.conv_in.weight)
    torch.testing.assert_close(other(*inputs()).sample, model(*inputs()).sample, atol=1e-4, rtol=0)


def test_the_time_embedding_at_the_last_step_survives_fewer_frequencies():
    big = unet()
    pruned = ChannelPrune(widths=(16, 32, 32)).apply(big)

    def embedding(model, t):
        return model.time_embedding.linear_1(model.time_proj(torch.tensor([t])))

    wanted = embedding(big, 999)
    assert float((embedding(pruned, 999) - wanted).norm() / wanted.norm()) < 1e-3
    assert pruned.time_embedding.linear_1.weight.abs().max() < 10  # not at the price of huge weights
