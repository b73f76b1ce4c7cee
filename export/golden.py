"""Compute golden vectors with diffusers' own modules in fp32, never with our rewritten graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from flashbulb.export.bundle import Golden, GoldenCase, Sanity
from flashbulb.export.noise import gaussian

if TYPE_CHECKING:
    from flashbulb.distill.checkpoint import Checkpoint
    from flashbulb.distill.schedule import OneStep

Arrays = dict[str, np.ndarray[Any, Any]]
FOLDER = "golden"
SANITY_SHARE = 0.5
"""An engine must reach this share of the reference's own variance and sensitivities."""


class Reference:
    """The checkpoint's modules, run eagerly in the order of the pipeline."""

    def __init__(self, checkpoint: Checkpoint, step: OneStep) -> None:
        self.checkpoint, self.step = checkpoint, step
        texts = [n for n in checkpoint.components() if n.startswith("text")]
        self.modules = {n: checkpoint.load(n) for n in (*texts, "unet", "vae")}
        self.tokenizers = {
            _input(n): checkpoint.tokenizer(n.replace("text_encoder", "tokenizer")) for n in texts
        }

    def token_ids(self, prompt: str) -> Arrays:
        """Tokenize for every text encoder with the fast tokenizers, cut and padded."""
        return {
            name: np.asarray(
                tokenizer(
                    [prompt], padding="max_length", truncation=True, max_length=self.checkpoint.text_length
                ).input_ids,
                dtype=np.int32,
            )
            for name, tokenizer in self.tokenizers.items()
        }

    def draw(self, ids: Arrays, noise: np.ndarray[Any, Any]) -> Arrays:
        """Return every tensor of one picture, by the names of the specs."""
        import torch

        with torch.no_grad():
            text = self._text({n: torch.from_numpy(v).long() for n, v in ids.items()})
            sample = torch.from_numpy(noise) * self.step.init_noise_sigma
            out = self._unet(sample, text)
            from_noise, from_output = self.step.coefficients()
            x0 = from_noise * sample + from_output * out
            latent = x0 / self.step.latent_scale + self.step.latent_shift
            decoded = self.modules["vae"].decode(latent, return_dict=False)[0]  # type: ignore[operator]
            image = (decoded / 2 + 0.5).clamp(0, 1)
        found = {**text, "sample": sample, "out": out, "x0": x0, "latent": latent, "image": image}
        arrays = {n: np.ascontiguousarray(t.float().numpy()) for n, t in found.items()}
        return {**ids, "noise": noise, **arrays}

    def _text(self, ids: dict[str, Any]) -> dict[str, Any]:
        import torch

        first = self.modules["text_encoder"]
        if not self.checkpoint.is_sdxl:
            return {"hidden": first(ids["input_ids"])[0]}
        one = first(ids["input_ids"], output_hidden_states=True).hidden_states[-2]
        second = self.modules["text_encoder_2"](ids["input_ids_2"], output_hidden_states=True)
        two = second.hidden_states[-2]
        hidden = torch.cat([one, two], dim=-1)
        return {"hidden_1": one, "hidden_2": two, "hidden": hidden, "pooled": second.text_embeds}

    def _unet(self, sample: Any, text: dict[str, Any]) -> Any:
        import torch

        added = None
        if self.checkpoint.is_sdxl:
            size = self.checkpoint.image_size
            time_ids = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)
            added = {"text_embeds": text["pooled"], "time_ids": time_ids}
        return self.modules["unet"](
            sample, self.step.timestep, text["hidden"], added_cond_kwargs=added, return_dict=False
        )[0]


def _input(component: str) -> str:
    return "input_ids_2" if component.endswith("_2") else "input_ids"


def write(reference: Reference, prompts: tuple[str, ...], seed: int, root: Path) -> tuple[Golden, Sanity]:
    """Write tensors, pictures and a readable index under `golden/`."""
    from safetensors.numpy import save_file

    shape = (1, *reference.checkpoint.latent_shape)
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    cases, drawn = [], []
    for index, prompt in enumerate(prompts):
        ids = reference.token_ids(prompt)
        drawn.append(reference.draw(ids, gaussian(seed + index, shape)))
        png = f"{FOLDER}/{index}.png"
        save_png(drawn[-1]["image"], root / png)
        token_ids = {n: tuple(int(i) for i in v[0]) for n, v in ids.items()}
        cases.append(GoldenCase(prompt=prompt, seed=seed + index, token_ids=token_ids, png=png))
    golden = Golden(cases=tuple(cases))
    save_file({f"{i}.{n}": a for i, case in enumerate(drawn) for n, a in case.items()}, root / golden.tensors)
    (root / golden.tensors).chmod(0o644)  # safetensors writes files for its owner only
    index_file = root / FOLDER / "vectors.json"
    index_file.write_bytes(msgspec.json.format(msgspec.json.encode(golden), indent=2) + b"\n")
    return golden, sanity(reference, drawn)


def sanity(reference: Reference, drawn: list[Arrays]) -> Sanity:
    """Measure how much the reference's picture varies, and how much prompt and noise change it."""
    first, second = drawn[0], drawn[1]
    ids = {n: a for n, a in first.items() if n.startswith("input_ids")}
    other = {n: a for n, a in second.items() if n.startswith("input_ids")}
    by_prompt = reference.draw(other, first["noise"])["image"]
    by_noise = reference.draw(ids, second["noise"])["image"]

    def share(value: Any) -> float:
        return round(SANITY_SHARE * float(value), 6)

    return Sanity(
        std_min=share(min(case["image"].std() for case in drawn)),
        prompt_rms_min=share(np.sqrt(np.mean((by_prompt - first["image"]) ** 2))),
        noise_rms_min=share(np.sqrt(np.mean((by_noise - first["image"]) ** 2))),
    )


def save_png(image: np.ndarray[Any, Any], path: Path) -> None:
    """Write an image of shape [1, 3, h, w] in [0, 1] as PNG."""
    from PIL import Image

    pixels = (image[0].transpose(1, 2, 0) * 255.0).round().clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
