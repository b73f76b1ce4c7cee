"""Distillation objectives; this union is their table of contents."""

from __future__ import annotations

from flashbulb.distill.objectives.add import Add

AnyObjective = Add
