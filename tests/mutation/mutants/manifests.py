"""Manifests that say something else than the truth.

Fields that no runtime and no gate reads (name, times, versions of tools, licences) are left alone: to change
them is no fault of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashbulb.distill.schedule import OneStep
from mutants.bundles import Json, json_edit
from mutants.fault import Planter, edited

MANIFEST = "manifest.json"


def manifest_faults(planter: Planter, manifest: Json) -> None:
    """Add every fault that this manifest can have."""

    def add(kind: str, about: str, change: Callable[[Json], object]) -> None:
        planter.add(kind, about, json_edit(MANIFEST, change))

    _constants(add)
    _tokenizer(add)
    _artifacts(add, manifest)
    _promises(add, manifest)
    _golden(add)
    planter.add("layout", "cut in the middle", edited(MANIFEST, lambda d: d[: len(d) // 2]))
    planter.add("same-program", "written without spaces", json_edit(MANIFEST, lambda m: None))


Add = Callable[[str, str, Callable[[Json], object]], None]


def _consistent(**changes: Any) -> Callable[[Json], None]:
    """Change constants and recompute the coefficients, so that they fit each other."""

    def change(manifest: Json) -> None:
        sampling = manifest["sampling"]
        step = sampling["one_step"]
        step |= {k: v(step[k]) if callable(v) else v for k, v in changes.items()}
        found = OneStep(**step).coefficients()
        sampling["noise_coefficient"], sampling["output_coefficient"] = found

    return change


def _constants(add: Add) -> None:
    add("timestep", "timestep 499 of the one step", _consistent(timestep=499))
    add("timestep", "folded timestep 499", lambda m: m["sampling"].update(folded_timestep=499))
    add("sigma", "alpha 1.05 times", _consistent(alpha=lambda v: v * 1.05))
    add("sigma", "sigma 0.95 times", _consistent(sigma=lambda v: v * 0.95))
    add("sigma", "alpha of step 499", _consistent(alpha=0.5216, sigma=0.8532))
    add(
        "sigma",
        "alpha alone, with the old coefficients",
        lambda m: m["sampling"]["one_step"].update(alpha=0.1),
    )
    add("sigma", "output coefficient of the other sign", _negate)
    add("sigma", "initial sigma 14.6", _consistent(init_noise_sigma=14.6))
    others = {"v_prediction": "epsilon", "epsilon": "v_prediction", "sample": "epsilon"}
    add("prediction", "another prediction type", _consistent(prediction_type=lambda v: others[v]))
    add("latent-scale", "latent scale 0.18215", _consistent(latent_scale=0.18215))
    add("latent-scale", "latent scale 1 % off", _consistent(latent_scale=lambda v: v * 1.01))
    add("latent-scale", "latent shift 0.1", _consistent(latent_shift=0.1))
    add(
        "noise",
        "noise in another order",
        lambda m: m["noise"]["shape"].__setitem__(slice(1, 4), m["noise"]["shape"][:0:-1]),
    )


def _negate(manifest: Json) -> None:
    manifest["sampling"]["output_coefficient"] *= -1


def _tokenizer(add: Add) -> None:
    def change(**values: Any) -> Callable[[Json], None]:
        return lambda m: m["tokenizers"][0].update(
            {k: v(m["tokenizers"][0]) if callable(v) else v for k, v in values.items()}
        )

    add("tokenizer", "padding with 0", change(pad_token_id=0))
    add("tokenizer", "start and end swapped", change(bos_token_id=lambda t: t["eos_token_id"]))
    add("tokenizer", "another end", change(eos_token_id=lambda t: t["eos_token_id"] - 5))
    add("tokenizer", "one id fewer", change(length=lambda t: t["length"] - 1))
    add("tokenizer", "another input", change(input="ids"))


def _artifacts(add: Add, manifest: Json) -> None:
    for backend in sorted({a["backend"] for a in manifest["artifacts"]}):
        _paths(add, backend)
        add("contract", f"{backend}: inputs of the UNet in reverse", _on(backend, "unet", _reverse_inputs))
        add("contract", f"{backend}: ids of 64 bits", _on(backend, "text_encoder", _wide_ids))
        add(
            "contract",
            f"{backend}: output of the decoder renamed",
            _on(backend, "vae_decoder", _rename_output),
        )
        add("contract", f"{backend}: a smaller picture", _on(backend, "vae_decoder", _smaller))
        add(
            "precision",
            f"{backend}: the other precision",
            _on(backend, "", _other_precision),
        )
        add("encodings", f"{backend}: says two weights are int4", _on(backend, "unet", _lie))
    add("layout", "an unknown field", lambda m: m.update(extra=1))
    add("layout", "schema 2", lambda m: m.update(schema_version=2))
    add("layout", "a file without a record", lambda m: m["files"].pop())


def _on(backend: str, component: str, change: Callable[[Json], object]) -> Callable[[Json], None]:
    def apply(manifest: Json) -> None:
        for artifact in manifest["artifacts"]:
            if artifact["backend"] == backend and component in ("", artifact["component"]):
                change(artifact)

    return apply


def _paths(add: Add, backend: str) -> None:
    """Exchange what two components are said to be."""

    def swap(manifest: Json) -> None:
        for fmt in {a["format"] for a in manifest["artifacts"] if a["backend"] == backend}:
            known = {a["component"]: a for a in manifest["artifacts"] if a["format"] == fmt}
            one, other = known["unet"], known["vae_decoder"]
            for key in ("path", "method", "files", "sha256", "size_bytes"):
                one[key], other[key] = other[key], one[key]

    add("contract", f"{backend}: UNet and decoder exchanged", swap)


def _reverse_inputs(artifact: Json) -> None:
    artifact["inputs"].reverse()


def _wide_ids(artifact: Json) -> None:
    artifact["inputs"][0]["dtype"] = "int64"


def _rename_output(artifact: Json) -> None:
    artifact["outputs"][0]["name"] = "picture"


def _smaller(artifact: Json) -> None:
    artifact["outputs"][0]["shape"][-1] //= 2


def _other_precision(artifact: Json) -> None:
    others = {"float32": "float16", "float16": "float32"}
    artifact["precision"] = others[artifact["precision"]]


def _lie(artifact: Json) -> None:
    artifact["encodings"] = {**artifact["encodings"], "int4": 2}


def _promises(add: Add, manifest: Json) -> None:
    """Thresholds and floors that let anything through."""

    def lower(quantity: str, backend: str) -> Callable[[Json], None]:
        def change(manifest: Json) -> None:
            for gate in manifest["gates"]:
                if (gate["quantity"], gate["backend"]) == (quantity, backend):
                    gate["minimum_db"] -= 60.0

        return change

    for backend in sorted({a["backend"] for a in manifest["artifacts"]}):
        add("thresholds", f"{backend}: 60 dB less for the UNet", lower("unet", backend))
        add("thresholds", f"{backend}: 60 dB less for the picture", lower("image", backend))
    add("thresholds", "no thresholds", lambda m: m["gates"].clear())
    add("thresholds", "one threshold missing", lambda m: m["gates"].pop(0))
    add(
        "thresholds", "x0 missing", lambda m: m.update(gates=[g for g in m["gates"] if g["quantity"] != "x0"])
    )
    for name in ("std_min", "prompt_rms_min", "noise_rms_min"):
        add("floors", f"{name} zero", lambda m, n=name: m["sanity"].update({n: 0.0}))
    add("source", "another digest of the checkpoint", lambda m: m["source"].update(sha256="0" * 64))
    add("image", "pictures of twice the size", lambda m: m["image"].update(height=128, width=128))


def _golden(add: Add) -> None:
    def case(index: int, **values: Any) -> Callable[[Json], None]:
        return lambda m: m["golden"]["cases"][index].update(values)

    add("golden-case", "another seed", case(0, seed=77))
    add("golden-case", "another prompt", case(1, prompt="a very different thing"))
    add("golden-case", "other ids", lambda m: _other_ids(m["golden"]["cases"][2]))
    add("golden-case", "one case left", lambda m: m["golden"].update(cases=m["golden"]["cases"][:1]))
    add("golden-case", "three cases left", lambda m: m["golden"].update(cases=m["golden"]["cases"][:3]))
    add(
        "golden-case",
        "two cases swapped",
        lambda m: m["golden"]["cases"].insert(0, m["golden"]["cases"].pop(1)),
    )


def _other_ids(case: Json) -> None:
    for ids in case["token_ids"].values():
        ids[1] += 1
