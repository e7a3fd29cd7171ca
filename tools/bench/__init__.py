"""The project's figures: ratios of two things that are measured in turns in one run, so a slow hour slows both."""

from bench.busy import busy
from bench.cache import cache
from bench.curves import curves
from bench.gpu import gpu
from bench.loader import loader
from bench.peers import peers
from bench.scale import scale
from bench.step import step
from bench.stream import stream
from bench.tokenizer import tokenizer
from bench.transplant import transplant
from bench.trunk import trunk

__all__ = [
    "busy",
    "cache",
    "curves",
    "gpu",
    "loader",
    "peers",
    "scale",
    "step",
    "stream",
    "tokenizer",
    "transplant",
    "trunk",
]
