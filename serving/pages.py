"""Two pages for people: `/docs` describes the interface, `/try` asks the model.

Each is one document without any outside resource, and its Content-Security-Policy names the hash of its own style and
script, so that nothing else runs. Data goes into the page as JSON, and the script writes it as text, never as markup.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mlflywheel.serving.openapi import describe_interface, example_v2
from mlflywheel.serving.predictor import Predictor

#: The format whose answers `/try` draws; others are shown as JSON.
_CAMPAIGN_FORMAT = "mlflywheel-topic-fingerprints"


@dataclass(frozen=True)
class Page:
    """A page and its headers."""

    body: bytes
    headers: Mapping[str, str]


def try_page(predictor: Predictor) -> Page:
    """Return the page that asks the model."""
    facts = {
        "name": predictor.name,
        "version": predictor.version,
        "url": f"/v1/models/{predictor.name}:predict",
        "example": predictor.example,
        "campaign": predictor.model.format_name == _CAMPAIGN_FORMAT,
    }
    return _build_page(f"Try {predictor.name}", "try.js", facts)


def docs_page(predictor: Predictor) -> Page:
    """Return the page that describes the interface."""
    facts = {
        "name": predictor.name,
        "version": predictor.version,
        "openapi": describe_interface(predictor),
        "v2": example_v2(predictor),
        "inputs": [declared.to_metadata() | {"json": declared.is_json} for declared in predictor.inputs],
        "outputs": [declared.to_metadata() | {"json": declared.is_json} for declared in predictor.outputs],
    }
    return _build_page(f"{predictor.name}: interface", "docs.js", facts)


def _build_page(title: str, script_name: str, facts: Mapping[str, Any]) -> Page:
    folder = files("mlflywheel.serving") / "web"
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8") + (folder / script_name).read_text(encoding="utf-8")
    # `</script>` in the data would end the element.
    data = json.dumps(facts, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    body = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>{style}</style></head>'
        f'<body><main id="page"></main><script type="application/json" id="facts">{data}</script>'
        f"<script>{script}</script></body></html>\n"
    )
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(
        body.encode(),
        {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-store"},
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
