"""Where the base model computes, and how tensors get there and back.

The trunk's parameters, kept activations and all passes are on one device, ``Trunk.device``.
Tensors cross in four places, and nowhere else:

- ``PrefixStore``: texts become padded tokens on the CPU and enter the device there;
- ``CohortEngine`` and ``SharedTextEngine`` bring parameters, the adapter's public constants and
  examples to the device; scores, features and sums of gradients come back to the CPU;
- ``train_cohort`` keeps a cohort on the device for all steps of a plan, brings each step's noise
  there, and gives the trained cohort back on the CPU;
- ``frozen_features`` gives what it computed back on the CPU, to a file.

Everything else is on the CPU: noise, which NumPy draws by keys and which so does not depend on
the device; private weights of reward heads, fusion and values, which are small; stores; messages.
"""

from __future__ import annotations

import os

import torch

from fl_core.config import DeviceName
from fl_core.errors import ConfigurationError

GPU_TOKENS = 8
"""How many times the tokens of a pass on the CPU go into one on a GPU, which needs them to be busy."""


def use_device(name: DeviceName) -> torch.device:
    """The device called ``name``, ready for use; ``auto`` is CUDA where torch sees a GPU.

    Ray, like an operator, says which GPUs a process may use by CUDA_VISIBLE_DEVICES; one without a
    share sees none.  On CUDA float32 products are set to be made in float32: TensorFloat32, which
    some installations switch on, loses the digits that a clip's bound needs.
    Raises ``ConfigurationError`` where CUDA is asked for and torch sees none.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError(f"device='cuda': {_why_none()}; or set device='cpu'")
    torch.set_float32_matmul_precision("highest")
    return torch.device("cuda", torch.cuda.current_device())


def pass_tokens(device: torch.device, on_cpu: int) -> int:
    """Padded tokens of one pass on ``device`` where the CPU takes ``on_cpu``."""
    return on_cpu if device.type == "cpu" else GPU_TOKENS * on_cpu


def _why_none() -> str:
    """Why torch sees no CUDA device, and what to do."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA; install a build with it"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible in ("", "-1"):
        return (
            f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs from this process; give nodes a share "
            "(--gpus-per-node 1, or client-resources-num-gpus)"
        )
    return "torch sees no GPU on this machine; check its driver"
