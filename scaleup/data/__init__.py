"""Shards of images and videos: written, checked, decoded, and put together as batches."""
