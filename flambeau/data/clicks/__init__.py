"""Click logs: fields, files, logs encoded as tensors, and clicks with planted interactions."""
