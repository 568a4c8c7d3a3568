"""Reader of a server's metrics, of `resnet50 top` and of the gateway (needs prometheus_client).

`scrape` fetches a server's metrics, `interval` computes rates between two scrapes and totals over
servers, `server_metrics` derives the displayed figures.
"""
