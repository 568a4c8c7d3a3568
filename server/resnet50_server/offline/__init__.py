"""Embed and classify any number of images without a server, on the code of a server."""

from resnet50_bulk.progress import Progress as Progress

from .jobs import Summary as Summary
from .jobs import classify as classify
from .jobs import embed as embed
from .jobs import open_embedder as open_embedder
from .local import LocalClassifier as LocalClassifier
from .local import LocalEmbedder as LocalEmbedder
from .worker import ImageWorker as ImageWorker
from .worker import WorkerFailed as WorkerFailed
from .workers import RayWorkers as RayWorkers
