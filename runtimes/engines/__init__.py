"""The engines.  The union is the list: the command line, the checks and the tests derive from it."""

from typing import get_args

from flashbulb.runtimes.engines.coreml import Coreml
from flashbulb.runtimes.engines.eager import Eager
from flashbulb.runtimes.engines.executorch import Executorch
from flashbulb.runtimes.engines.mil.engine import Mil
from flashbulb.runtimes.engines.ort import Ort

AnyEngine = Eager | Ort | Executorch | Coreml | Mil


def engine_names() -> tuple[str, ...]:
    """List the words for the engines."""
    return tuple(str(cls.__struct_config__.tag) for cls in get_args(AnyEngine))


def engine_named(name: str) -> AnyEngine:
    """Return an engine at its defaults.

    Raises:
        ValueError: listing the known names.
    """
    for cls in get_args(AnyEngine):
        if cls.__struct_config__.tag == name:
            found: AnyEngine = cls()
            return found
    raise ValueError(f"wanted an engine in {list(engine_names())}, got {name!r}")


__all__ = ["AnyEngine", "Coreml", "Eager", "Executorch", "Mil", "Ort", "engine_named", "engine_names"]
