"""Live view of servers: `resnet50 top`.

Data flows one way: `resnet50_metrics` reads a server's metrics; `poller` polls one server, also
while it is unreachable, `variant_status` polls the state of variants, and both feed a `Snapshot`;
`view` renders it; `command` and `keyboard` run the display.
"""
