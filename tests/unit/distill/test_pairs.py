"""The cache of teacher pictures: kept after a kill, drawn anew where the captions are others."""

import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.pairs import cache_pairs, load_pairs

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample"}


class Net(torch.nn.Module):
    """Draws what the text says, and counts how often it is asked."""

    asked = 0

    def forward(self, z, t, states):
        self.asked += 1
        return type("Out", (), {"sample": states.mean((1, 2)).view(-1, 1, 1, 1).expand_as(z)})


def cache(folder, words):
    """Cache two chunks of pictures for prompts that are a word a chunk; return how many were drawn."""
    net = Net()
    ids = {chunk: torch.full((64, 2), word) for chunk, word in enumerate(words)}
    cache_pairs(
        folder, 128, teacher=Denoiser(net, Schedule(SD)), null_states=torch.zeros(1, 2, 3), shape=(4, 2, 2),
        steps=1, guidance=1.0, prompts=lambda n: (ids[n], ids[n][..., None].expand(-1, -1, 3) / 8),
    )  # fmt: skip
    return net.asked


def test_only_chunks_of_other_captions_are_drawn_anew(tmp_path):
    assert cache(tmp_path, (1, 2)) == 2
    assert cache(tmp_path, (1, 2)) == 0
    assert cache(tmp_path, (1, 4)) == 1
    ids, _, endpoint = load_pairs(tmp_path, 128)
    assert ids[:, 0].tolist() == [1] * 64 + [4] * 64
    torch.testing.assert_close(endpoint[:, 0, 0, 0], ids[:, 0] / 8, atol=1e-2, rtol=1e-2)
