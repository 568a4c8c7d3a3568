"""The types of results: of images, of variants, and of traffic splits."""
