"""The teacher's loss: a perfect v has none, and another target does."""

import torch

from flashbulb.distill.loop import StepRng
from flashbulb.distill.schedule import alphas_cumprod
from flashbulb.distill.teacher.denoiser import SCHEDULER, v_loss


class Oracle:
    """Knows x0, so it can solve for the noise and return v, or something else on request."""

    def __init__(self, x0, products, wrong=1.0):
        self.x0, self.products, self.wrong = x0, products, wrong

    def __call__(self, z, t, states):
        alpha, sigma = (f[t].sqrt().view(-1, 1, 1, 1) for f in (self.products, 1 - self.products))
        v = alpha * (z - alpha * self.x0) / sigma - self.wrong * sigma * self.x0
        return type("Out", (), {"sample": v})


def test_the_oracle_has_no_loss_and_a_wrong_sign_has():
    products = torch.from_numpy(alphas_cumprod(SCHEDULER)).float()
    x0 = torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert v_loss(Oracle(x0, products), x0, None, products, StepRng(0, 0, 0)) < 1e-6
    assert v_loss(Oracle(x0, products, -1.0), x0, None, products, StepRng(0, 0, 0)) > 1
