"""Model directories on disk: config.json, names of tensors, the model card. It knows no module."""
