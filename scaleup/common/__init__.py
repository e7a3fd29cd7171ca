"""What all rooms stand on: files, processes, tensors, time. It knows no model."""
