"""One thread: the tiny products of these tests only lose time to more."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
