"""Distillation objectives; this union is their table of contents."""

from __future__ import annotations

from flashbulb.distill.objectives.add import Add
from flashbulb.distill.objectives.cfg_aware import CfgAware
from flashbulb.distill.objectives.guided import GuidedFirst, GuidedSecond
from flashbulb.distill.objectives.instaflow import InstaFlow, Reflow
from flashbulb.distill.objectives.lcm import Lcm
from flashbulb.distill.objectives.progressive import Progressive
from flashbulb.distill.objectives.ufogen import UfoGen

AnyObjective = Add | Progressive | GuidedFirst | GuidedSecond | CfgAware | Lcm | Reflow | InstaFlow | UfoGen
