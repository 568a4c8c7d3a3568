"""Load balancers of deploy/ in front of two servers, tried for real: `make proxies`."""
