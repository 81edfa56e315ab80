"""A page that tells the endpoints, made from the OpenAPI; no script, nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fullfield.deploy.serve.uploads import FIELD, MULTIPART

__all__ = ["docs_page"]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}code,pre{font:14px/1.5 ui-monospace,monospace;background:#f2f2f2;border-radius:4px}"
    "code{padding:.1em .3em}pre{padding:.8em;overflow-x:auto}h2{margin-top:2em;font-size:1.1rem}"
    "td{padding:.1em 1em .1em 0;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#16181c}code,pre{background:#26292f}a{color:#8ab4ff}}"
)


def docs_page(openapi: dict[str, Any], *, form: bool) -> str:
    """Return the page as HTML.

    Args:
        openapi: The document of the application.
        form: Whether to show a form that sends a picture; it can't send a key.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(openapi['info']['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}</h1>",
        f"<p>{escape(openapi['info'].get('description', ''))} The whole description is ",
        "<a href=/openapi.json>openapi.json</a>.</p>",
    ]
    if form:
        parts += [
            f"<form action=/v1/predict method=post enctype={MULTIPART}><label>A picture for the default model ",
            f"<input type=file name={FIELD} accept='image/*' required></label> <button>Ask</button></form>",
        ]
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(path, method, operation))
    return "".join(parts) + "</html>"


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    told = [f"<h2><code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}</h2>"]
    key = " -H 'X-API-Key: KEY'" if operation.get("security") else ""
    if "requestBody" in operation:
        told.append(f"<pre>curl{key} -F {FIELD}=@photo.jpg http://HOST{escape(path)}</pre>")
    else:
        told.append(f"<pre>curl{key} http://HOST{escape(path)}</pre>")
    parameters = operation.get("parameters", [])
    if parameters:
        rows = "".join(
            f"<tr><td><code>{escape(one['name'])}</code><td>{escape(_values(one))}<td>"
            f"{escape(one.get('description', ''))}"
            for one in parameters
        )
        told.append(f"<table>{rows}</table>")
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code><td>{escape(answer.get('description', ''))}"
        for status, answer in operation.get("responses", {}).items()
    )
    return "".join(told) + f"<table>{answers}</table>"


def _values(parameter: dict[str, Any]) -> str:
    schema = parameter.get("schema", {})
    options = [schema, *schema.get("anyOf", [])]
    listed = next((", ".join(map(str, one["enum"])) for one in options if "enum" in one), "")
    if listed:
        return listed
    low, high = schema.get("minimum"), schema.get("maximum")
    limits = f" {low} to {high}" if low is not None and high is not None else ""
    default = f", {schema['default']} by default" if "default" in schema else ""
    return f"{schema.get('type', '')}{limits}{default}"
