"""What Prometheus reads at /metrics.

Labels are names of models, routes and codes that the service itself gives: never what a client wrote, which could fill
the memory with series.
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The service's own registry, so that several applications can live in one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("fullfield_requests", "Requests answered.", ["route", "model", "status"], registry=own)
        self.seconds = Histogram(
            "fullfield_request_seconds",
            "From a request's head to the end of its answer.",
            ["route", "model"],
            buckets=_SECONDS,
            registry=own,
        )
        self.bytes = Counter("fullfield_body_bytes", "Bytes of bodies read.", ["model"], registry=own)
        self.images = Counter("fullfield_images", "Images answered.", ["model", "status"], registry=own)
        self.batch_size = Histogram(
            "fullfield_batch_images", "Images a batch.", ["model"], buckets=_IMAGES, registry=own
        )
        self.batch_seconds = Histogram(
            "fullfield_batch_seconds", "A worker's time for a batch.", ["model"], buckets=_SECONDS, registry=own
        )
        self.queue_seconds = Histogram(
            "fullfield_queue_seconds", "An image's time in the queue.", ["model"], buckets=_SECONDS, registry=own
        )
        self.waiting = Gauge("fullfield_queue_images", "Images that wait.", ["model"], registry=own)
        self.workers = Gauge("fullfield_workers_ready", "Workers that can answer.", ["model"], registry=own)
        self.deaths = Counter("fullfield_worker_deaths", "Workers that ended.", ["model"], registry=own)
        self.in_progress = Gauge("fullfield_requests_in_progress", "Requests read or answered now.", registry=own)
        self.held_bytes = Gauge("fullfield_held_bytes", "Bytes of bodies in memory now.", registry=own)
        self.connections_refused = Counter(
            "fullfield_connections_refused", "Closed: beyond the limit, or no head came.", ["why"], registry=own
        )

    def text(self) -> bytes:
        """Return all of them in Prometheus's text format."""
        return generate_latest(self.registry)
