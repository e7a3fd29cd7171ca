"""Image ViTs from timm and open_clip, taken apart behind one protocol."""
