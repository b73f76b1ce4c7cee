"""A fixed guidance scale in the bias is the scale as an input, told by diffusers' own embedding."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.guidance import EMBEDDING_WIDTH, fold_scale, with_scale_input
from flashbulb.distill.text import added_width, split_states, text_function, token_ids


def scaled(checkpoint, dtype=torch.float64):
    """A UNet whose input for the scale matters."""
    unet = with_scale_input(checkpoint.load("unet")).to(dtype)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, generator=torch.Generator().manual_seed(0))
    return unet.requires_grad_(False)


@pytest.mark.parametrize("g", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_sdxl"])
def test_the_folded_network_is_the_one_that_is_told(kind, g, request):
    checkpoint = Checkpoint.open(request.getfixturevalue(kind))
    unet = scaled(checkpoint)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    folded = fold_scale(unet, g)
    assert folded.config["time_cond_proj_dim"] is None
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())

    states = text_function(checkpoint)(token_ids(checkpoint, ["a fox", "two penguins"]))[0].double()
    hidden, added = split_states(states, added_width(unet.config))
    z = torch.randn(2, *checkpoint.latent_shape, generator=torch.Generator().manual_seed(1)).double()
    t = torch.tensor([999, 250])
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([g - 1]), EMBEDDING_WIDTH
    )
    told = {"timestep_cond": embedding.double()}
    wanted = unet(z, t, hidden, added_cond_kwargs=added, **told).sample
    found = folded(z, t, hidden, added_cond_kwargs=added).sample
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    untold = unet(z, t, hidden, added_cond_kwargs=added).sample
    assert float((untold - wanted).abs().max()) > 0.01 * float(wanted.abs().max())


def test_what_cannot_be_folded_is_refused(tiny_sd):
    checkpoint = Checkpoint.open(tiny_sd)
    with pytest.raises(ValueError, match="got an input 0 wide"):
        fold_scale(checkpoint.load("unet"), 3.0)
    with pytest.raises(ValueError, match=r"the scale 0\.5"):
        fold_scale(scaled(checkpoint), 0.5)


def test_half_precision_stays(tiny_sd):
    folded = fold_scale(scaled(Checkpoint.open(tiny_sd), torch.float16), 3.0)
    assert {p.dtype for p in folded.parameters()} == {torch.float16}
