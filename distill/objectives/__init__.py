"""Distillation objectives; this union is their table of contents."""

from __future__ import annotations

from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.guided import GuidedFirst, GuidedSecond
from flashbulb.distill.objectives.progressive import Progressive

AnyObjective = Add | Progressive | GuidedFirst | GuidedSecond
