"""The section of accord.toml about the machine: device, processes, memory. See `accord/config/schema.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from accord.config.section import Section


class ComputeSection(Section):
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto`: CUDA where there is one.")
    threads: int = Field(
        0, ge=0, description="CPU threads of a process; 0: the cores, parted evenly. Fixed threads give fixed bits."
    )
    processes: int = Field(1, ge=1, description="Processes on this machine that share sampling, scoring and training.")
    restarts: int = Field(
        0, ge=0, description="How often all processes are started again, from the last checkpoint, after one was lost."
    )
    timeout_seconds: float = Field(
        600.0, gt=0, description="A process that another one waits for so long counts as lost."
    )
    shard: Literal["never", "full"] = Field(
        "never",
        description='With model.adapter = "full" and several processes: each holds all trained weights, or its part.',
    )
    memory_gb: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Memory of a process, from which micro-batches are chosen (docs/memory.md); 0: they are as set.",
    )
    checkpoint_gradients: bool = Field(
        False, description="Keep less for the backward pass and compute it again: same gradients, slower, leaner."
    )
