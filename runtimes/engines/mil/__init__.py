"""An interpreter of saved Core ML programs (`.mlpackage`): they run on any system, operation by operation.

    from flashbulb.runtimes.engines.mil import Program
    Program.load("model.mlpackage", mode="fp32").predict({"x": array})

Light to import: torch is loaded with the first program, coremltools never.
"""

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.program import Program

__all__ = ["Program", "ProgramError"]
