"""What coremltools' passes are to do differently."""

from __future__ import annotations

import functools
from typing import Any

LEAST_EPSILON = 1e-12
"""What coremltools itself adds where nothing is to be added; as a float16, 6e-8."""
FUSES_AFFINES = "common::fuse_elementwise_to_batchnorm"


def pipeline(ct: Any) -> Any:
    """Return the passes of a conversion.

    The affine's factor is not multiplied into the fp16 weights of the last convolution, and an affine that
    became a batch normalisation is exact.
    """
    chosen = ct.PassPipeline()
    chosen.remove_passes({"common::fuse_conv_scale"})
    chosen.insert_pass(chosen.passes.index(FUSES_AFFINES) + 1, exact_affines())
    return chosen


@functools.cache
def exact_affines() -> str:
    """Register the pass that takes the epsilon from what was no normalisation, and return its name.

    coremltools writes a product and a sum per channel as `batch_norm` of mean 0 and variance 1, and leaves it
    its default epsilon: x / sqrt(1 + 1e-5) is 5e-6 less than x, a hundred times what float32 rounds.
    """
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    class ExactAffines(AbstractGraphPass):
        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                with function:
                    for op in [o for o in function.operations if _is_affine(o)]:
                        _replace(op)

    register_pass("flashbulb", override=True, name="exact_affines")(ExactAffines)
    return "flashbulb::exact_affines"


def _is_affine(op: Any) -> bool:
    if op.op_type != "batch_norm":
        return False
    return bool((op.mean.val == 0).all() and (op.variance.val == 1).all())


def _replace(op: Any) -> None:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools spells it

    given = {key: getattr(op, key) for key in ("x", "mean", "variance", "gamma", "beta")}
    old = op.outputs[0]
    new = mb.batch_norm(**given, epsilon=LEAST_EPSILON, name=old.name, before_op=op)
    block = op.enclosing_block
    block.replace_uses_of_var_after_op(anchor_op=op, old_var=old, new_var=new)
    block.remove_ops([op])
