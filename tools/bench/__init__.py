"""The project's figures: ratios of two sides measured in turn in one run, so that the drift of a machine cancels."""

from bench.busy import busy
from bench.cache import cache
from bench.curves import curves
from bench.loader import loader
from bench.peers import peers
from bench.step import step
from bench.stream import stream
from bench.tokenizer import tokenizer
from bench.transplant import transplant
from bench.trunk import trunk

__all__ = ["busy", "cache", "curves", "loader", "peers", "step", "stream", "tokenizer", "transplant", "trunk"]
