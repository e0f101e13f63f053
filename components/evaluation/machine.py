"""The machine that a speed was measured on, in words: a speed without it says nothing."""

from __future__ import annotations

from components.tracking.machine import processor


def describe_machine() -> str:
    """Processor, threads in use, GPU if there is one, and the number format the models run in."""
    import torch

    from components.towers.device import pick_dtype

    devices = [f"{processor()}, {torch.get_num_threads()} threads"]
    devices += [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
    return f"{' with '.join(devices)}, {str(pick_dtype('auto')).removeprefix('torch.')}"
