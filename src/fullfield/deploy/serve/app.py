"""The application: its endpoints, and what guards them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from fullfield.deploy.serve.docs_page import docs_page
from fullfield.deploy.serve.keys import OPEN_PATHS, KeyCheck
from fullfield.deploy.serve.middleware import CloseUnread, RecordRequests
from fullfield.deploy.serve.refusal import Refusal
from fullfield.deploy.serve.schemas import (
    Health,
    ModelList,
    PredictAnswer,
    Readiness,
    refusals,
    request_body,
)
from fullfield.deploy.serve.serving import Serving
from fullfield.deploy.serve.settings import ServeSettings
from fullfield.version import __version__

__all__ = ["create_app"]

Name = Annotated[str, Path(description="A name that GET /v1/models lists.")]
Top = Annotated[int, Query(ge=1, le=1000, description="Classifiers: how many classes to name.")]
Threshold = Annotated[float, Query(ge=0, le=1, description="Detectors: objects with a lower score are left out.")]
Mask = Annotated[
    Literal["png", "rle"] | None,
    Query(description="png: segmenters add their label map; rle: detectors with masks add them. Others ignore it."),
]


def create_app(settings: ServeSettings) -> FastAPI:
    """Return the application; its lifespan starts and stops the workers.

    Keys and logs cover whatever is mounted in it afterwards, too. `app.state.serving` holds the models.

    Args:
        settings: What is served, and the limits.
    """
    serving = Serving(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for service in serving.services.values():
            service.start()
        try:
            yield
        finally:
            serving.stopping = True
            for service in serving.services.values():
                await service.stop()

    app = FastAPI(
        title="Fullfield",
        version=__version__,
        description="Vision models that answer images.",
        lifespan=lifespan,
        # The usual pages load their scripts from elsewhere; /docs below needs nothing.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.serving = serving
    _add_predicting(app, serving)
    _add_telling(app, serving)
    _add_refusals(app)
    _complete_openapi(app, settings)
    # The last one added is the outermost.
    if settings.keys:
        app.add_middleware(KeyCheck, keys=settings.keys)
    app.add_middleware(CloseUnread)
    app.add_middleware(RecordRequests, metrics=serving.metrics, stopping=lambda: serving.stopping)
    return app


def _add_predicting(app: FastAPI, serving: Serving) -> None:
    names = [model.name for model in serving.settings.models]
    described: dict[str, Any] = {"responses": refusals(), "response_model": PredictAnswer}
    described |= {"openapi_extra": request_body(serving.settings.max_images), "response_model_exclude_none": True}

    @app.post("/v1/predict", summary="Answer images with the default model", **described)
    async def predict(request: Request, top: Top = 5, threshold: Threshold = 0.3, mask: Mask = None) -> Response:
        options = {"top": top, "threshold": threshold, "mask": mask}
        return JSONResponse(await serving.predict(names[0], request, options))

    @app.post("/v1/models/{name}/predict", summary="Answer images with one of the models", **described)
    async def predict_with(
        request: Request,
        name: Name,
        top: Top = 5,
        threshold: Threshold = 0.3,
        mask: Mask = None,
    ) -> Response:
        options = {"top": top, "threshold": threshold, "mask": mask}
        return JSONResponse(await serving.predict(name, request, options))


def _add_telling(app: FastAPI, serving: Serving) -> None:
    @app.get("/v1/models", summary="The models and the limits", response_model=ModelList, responses=_of(serving))
    async def models() -> Response:
        return JSONResponse(_model_list(serving))

    @app.get("/health", summary="Whether the process lives", response_model=Health)
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", summary="Whether every model can answer", response_model=Readiness, responses={503: _NOT_READY})
    async def ready() -> Response:
        states = {name: service.state.partition(":")[0] for name, service in serving.services.items()}
        fine = not serving.stopping and all(service.ready for service in serving.services.values())
        return JSONResponse({"ready": fine, "models": states}, 200 if fine else 503)

    @app.get(
        "/metrics",
        summary="Counts and times for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_of(serving)},
    )
    async def metrics() -> Response:
        return Response(serving.metrics.text(), headers={"Content-Type": serving.metrics.content_type})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        page = docs_page(app.openapi(), form=not serving.settings.keys)
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


_NOT_READY: dict[str, Any] = {"model": Readiness, "description": "A model is being loaded, restarted, or is refused"}


def _of(serving: Serving) -> dict[int | str, dict[str, Any]]:
    return refusals(401) if serving.settings.keys else {}


def _model_list(serving: Serving) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for name, service in serving.services.items():
        about = service.about
        rows.append(
            {
                "name": name,
                "default": not rows,
                "ready": service.ready,
                **{key: about.get(key) for key in ("task", "net", "engine", "trained")},
                **{key: about.get(key, []) for key in ("classes", "colours")},
                "input": {key: about.get(key) for key in ("batch", "height", "width", "precision")},
            }
        )
    limits = serving.settings
    return {
        "models": rows,
        "limits": {
            "bytes": limits.max_bytes,
            "pixels": limits.max_pixels,
            "images": limits.max_images,
            "seconds": limits.request_timeout_s,
        },
    }


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return refusal.response(request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        told = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return Refusal(422, "parameter", told).response(request.scope)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        sentences = {404: "There is nothing at this address; /docs tells what there is.", 405: "Not this method."}
        sentence = sentences.get(error.status_code, "The request can't be read.")
        return Refusal(error.status_code, "http", sentence, headers=error.headers).response(request.scope)


def _complete_openapi(app: FastAPI, settings: ServeSettings) -> None:
    """Say in the OpenAPI which names there are and which routes need a key, and drop forms that no answer has."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            for form in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(form, None)
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    for parameter in operation.get("parameters", ()):
                        if parameter["in"] == "path":
                            parameter["schema"]["enum"] = [model.name for model in settings.models]
                    if settings.keys and path not in OPEN_PATHS:
                        operation["security"] = [{"bearer": []}, {"header": []}]
            if settings.keys:
                schema["components"]["securitySchemes"] = {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                }
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
