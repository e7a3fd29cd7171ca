"""Shards of images and videos: writing, checking, decoding and batching."""
