"""`resnet50 variants`: list, load, unload and compare the variants of servers."""
