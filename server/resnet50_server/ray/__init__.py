"""Servers on a Ray cluster: Ray places, supervises and scales them; calls reach them directly.

`resnet50-server ray deploy` deploys them; `serve deploy` and a RayService take `import_path:
resnet50_server.ray.application:build`. Needs the extra `[ray]`.
"""
