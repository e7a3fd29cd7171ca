"""Imported once, by the process that tools are forked from: what takes seconds to import."""

import gc
from importlib import import_module

from scaleup.evaluation import predictor
from scaleup.training import engine, run
from support import quick

assert predictor and run and quick and engine._deepspeed()
import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # ZeRO does, at its first start
gc.freeze()  # tools look for garbage among what is their own
