"""Text states against diffusers' own pipelines, for one encoder and for two."""

import json
import shutil

import pytest
import torch

from flashbulb.distill.checkpoint import Checkpoint, CheckpointError
from flashbulb.distill.critic_unet import UnetCritic
from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.samplers import ddim, trailing
from flashbulb.distill.stage import ONE_STEP_SCHEDULER
from flashbulb.distill.text import added_width, null_states, split_states, text_function, token_ids

PROMPTS = ["a glossy red apple on a pink background", "two penguins"]


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl, tmp_path_factory):
    """`tiny_sdxl` whose second tokenizer pads with another token, as the published checkpoints' does."""
    out = tmp_path_factory.mktemp("text") / "sdxl"
    shutil.copytree(tiny_sdxl, out)
    tokenizer = Checkpoint.open(out).tokenizer("tokenizer_2")
    tokenizer.pad_token = "!"
    tokenizer.save_pretrained(out / "tokenizer_2")
    return Checkpoint.open(out)


def test_one_encoder_equals_diffusers(tiny_sd):
    checkpoint = Checkpoint.open(tiny_sd)
    wanted, negative = checkpoint.pipeline().encode_prompt(PROMPTS, "cpu", 1, True)
    encode = text_function(checkpoint)
    torch.testing.assert_close(encode(token_ids(checkpoint, PROMPTS))[0], wanted)
    torch.testing.assert_close(null_states(checkpoint, encode).expand_as(negative), negative)
    assert added_width(checkpoint.config("unet")) == 0


@pytest.mark.parametrize("zeros", [True, False])
def test_two_encoders_equal_diffusers(sdxl, tmp_path, zeros):
    out = tmp_path / "checkpoint"
    shutil.copytree(sdxl.path, out)
    index = json.loads((out / "model_index.json").read_text()) | {"force_zeros_for_empty_prompt": zeros}
    (out / "model_index.json").write_text(json.dumps(index))
    checkpoint = Checkpoint.open(out)
    pipeline = checkpoint.pipeline()
    hidden, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS, device="cpu")
    ids = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 32)

    encode = text_function(checkpoint)
    states, summary = encode(token_ids(checkpoint, PROMPTS))
    torch.testing.assert_close(states[:, :-1], hidden)
    torch.testing.assert_close(summary, torch.nn.functional.pad(pooled, (0, 32)))
    found, added = split_states(states, added_width(checkpoint.config("unet")))
    torch.testing.assert_close(found, hidden)
    torch.testing.assert_close(added["text_embeds"], pooled)
    torch.testing.assert_close(added["time_ids"], ids.expand(2, -1))

    found, added = split_states(null_states(checkpoint, encode), 32)
    torch.testing.assert_close(found, negative[:1])
    torch.testing.assert_close(added["text_embeds"], negative_pooled[:1])
    torch.testing.assert_close(added["time_ids"], ids)
    assert bool((negative == 0).all()) == zeros


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (2, 3.0)])
def test_a_picture_equals_diffusers(sdxl, tmp_path, steps, guidance):
    """The UNet in double precision, which autocast leaves alone; the text encoders know floats only."""
    student = sdxl.derive(tmp_path / "student", stage="test", config={}, scheduler=ONE_STEP_SCHEDULER)
    noise = torch.randn(2, *student.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    pipeline = student.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    with torch.no_grad():
        text = dict(zip(names, pipeline.encode_prompt(PROMPTS, device="cpu"), strict=True))
    pipeline.text_encoder = pipeline.text_encoder_2 = None
    pipeline.unet.double()
    wanted = pipeline(
        **{name: value.double() for name, value in text.items()},
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.clone(),
        output_type="latent",
    ).images

    encode = text_function(student)
    states, null = encode(token_ids(student, PROMPTS))[0].double(), null_states(student, encode).double()
    denoiser = Denoiser(student.load("unet", "float64"), Schedule(student.config("scheduler")))
    with torch.no_grad():
        found = ddim(denoiser, noise, states, trailing(steps), guidance=guidance, null_states=null)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_sizes_and_pooled_text_reach_the_network(sdxl):
    denoiser = Denoiser(sdxl.load("unet"), Schedule(sdxl.config("scheduler")))
    states = text_function(sdxl)(token_ids(sdxl, PROMPTS[:1]))[0]
    noise, t = torch.randn(1, *sdxl.latent_shape), torch.tensor([999])
    for column in (0, 32):  # the first value of the pooled text, and the first size
        other = states.clone()
        other[:, -1, column] += 10
        assert not torch.equal(denoiser(noise, t, states), denoiser(noise, t, other))


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sdxl"])
def test_a_critic_of_a_unet_sees_what_the_unet_sees(kind, request):
    checkpoint = Checkpoint.open(request.getfixturevalue(kind))
    unet, seen = checkpoint.load("unet", "float64"), []
    critic = UnetCritic(unet)
    for network in (unet, critic):
        network.mid_block.register_forward_hook(lambda module, given, out: seen.append(out))
    states = text_function(checkpoint)(token_ids(checkpoint, PROMPTS))[0].double()
    z, t = torch.randn(2, *checkpoint.latent_shape).double(), torch.tensor([3, 700])
    Denoiser(unet, Schedule(checkpoint.config("scheduler")))(z, t, states)
    critic.double()(z, t, states)
    torch.testing.assert_close(*seen)


def test_states_too_narrow_for_the_pooled_text_are_refused(sdxl, tmp_path):
    out = tmp_path / "checkpoint"
    shutil.copytree(sdxl.path, out)
    file = out / "unet" / "config.json"
    config = json.loads(file.read_text()) | {"projection_class_embeddings_input_dim": 6 * 8 + 31}
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="a UNet that takes 31"):
        text_function(Checkpoint.open(out))
