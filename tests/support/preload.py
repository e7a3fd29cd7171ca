"""Imported once, by the process that tools are forked from: what takes seconds to import."""

from functools import cache
from importlib import import_module

import torch

from scaleup.evaluation import predictor
from scaleup.training import engine, run

torch.cuda.is_available = cache(torch.cuda.is_available)  # see conftest.py
assert predictor and run and engine._deepspeed()
import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # ZeRO does, at its first start
