"""Used by all other rooms: files, processes, tensors, time. Nothing here depends on models."""
