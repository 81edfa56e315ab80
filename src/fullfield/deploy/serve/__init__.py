"""The HTTP service: models behind a bounded queue, answered in batches by processes of their own.

`run.serve` starts it, `app.create_app` gives the application alone, `settings.ServeSettings` holds every limit.

    client ─ protocol ─ app ─ uploads ─ service (queue, batching) ─ process ═ pipe ═ worker (decodes, Predictor)

The event loop moves bytes and never decodes an image. What a client sent is decoded in a worker, so that a picture
that brings a decoder down costs a worker, which is started again, and not the service.
"""
