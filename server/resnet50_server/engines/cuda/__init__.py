"""The CUDA engine: graphs per batch size bucket, pinned buffers, output layout."""
