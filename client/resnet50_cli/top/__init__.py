"""Live view of servers: `resnet50 top`.

Data flows one way: `scrape` fetches a server's metrics; `interval` computes rates between two
scrapes and totals over servers; `server_metrics` derives the displayed figures; `poller` polls one
server, also while it is unreachable, `variant_status` polls the state of variants, and both feed a
`Snapshot`; `view` renders it; `command` and `keyboard` run the display.
"""
