"""Live view of servers: `resnet50 top`.

Data flows one way: `scrape` fetches what a server exports; `interval` says what it did between two
scrapes, and adds servers up; `reading` makes figures of that; `watch` keeps an eye on one server
that may go away and come back, `facts` asks what the variants are, and both end in a `Snapshot`;
`view` lays it out, `keys` and `command` show it until they are told to stop.
"""
