"""The path of one image: admission, decode pool, response cache, single-flight, pipeline."""
