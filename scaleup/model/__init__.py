"""TubeViT: tubes, positions, tokenizer, trunk, arms; saved and loaded."""
