"""Image ViTs of timm and open_clip, split into parts behind one protocol."""
