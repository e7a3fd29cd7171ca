"""Imported by all that tests run in: what they do not wait for."""

import os
from functools import cache

import torch

torch.cuda.is_available = cache(torch.cuda.is_available)  # which asks the driver before every operation that is traced
os.fsync = lambda _: None  # no test pulls the plug: what a killed process wrote is there
