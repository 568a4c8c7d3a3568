"""HTTP gateway: translates HTTP, WebSocket, Connect and gRPC-Web into calls of gRPC servers.

A process of its own that needs neither torch nor the server's package. Limits of images, tokens,
deadlines and fairness are the servers'; the gateway bounds connections, headers and bodies.
"""
