"""Real material for a transplant: pretrained weights that public packages contain."""
