"""The laboratory: experiments whose truth is known, on the reward models, trainers and alarms that the loop uses."""

from accord.laboratory.experiment import QUICK, LabSettings, run_lab
from accord.laboratory.page import render_lab, summarise_lab

__all__ = ["QUICK", "LabSettings", "render_lab", "run_lab", "summarise_lab"]
