"""Load generator: `resnet50 bench`.

Data flows one way: a `Plan` says what to do; `pictures` and `payloads` make its requests ahead of
time; `load` decides when a call is made, `calls` makes it, `Record` notes what became of it; `run`
puts them together and gives a `Run`; `sweep` makes several; a `Bench` is what is kept of them all,
read by `table`, `report` and `comparison`.
"""
