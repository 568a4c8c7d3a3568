"""Load generator: `resnet50 bench`.

Data flows one way: a `Plan` describes the benchmark; `sample_images` and `payloads` prepare its
requests; `load_generator` schedules calls, `calls` makes them, a `Recorder` records outcomes;
`runner` runs one load and returns a `Run`; `sweep` runs several; a `Bench` contains all results
and is read by `table`, `report` and `comparison`.
"""
