"""Imported once, by the process that tools are forked from: what takes seconds to import."""

from importlib import import_module

from scaleup.evaluation import predictor
from scaleup.training import engine, run

assert predictor and run and engine._deepspeed()
import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # ZeRO does, at its first start
