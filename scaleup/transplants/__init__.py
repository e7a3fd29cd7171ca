"""Tubes of a small joint model moved into a large image ViT (paper, Section 3.6)."""
