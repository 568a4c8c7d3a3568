"""`resnet50 embed`: embeddings of many images, resumable."""
