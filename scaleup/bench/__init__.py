"""The project's figures: ratios of two sides measured in turn in one run, so that the drift of a machine cancels."""

from scaleup.bench.cache import cache
from scaleup.bench.curves import curves
from scaleup.bench.loader import loader
from scaleup.bench.peers import peers
from scaleup.bench.step import step
from scaleup.bench.stream import stream
from scaleup.bench.tokenizer import tokenizer
from scaleup.bench.transplant import transplant
from scaleup.bench.trunk import trunk

__all__ = ["cache", "curves", "loader", "peers", "step", "stream", "tokenizer", "transplant", "trunk"]
