"""The description of the interface, and the pages for people."""

import base64
import hashlib
import re
from typing import Any

import httpx
import pytest
from running_server import RunningServer


@pytest.fixture(scope="module")
def interface(server: RunningServer) -> Any:
    return server.get("/openapi.json").json()


def test_every_described_path_answers_as_described(server: RunningServer, interface: Any) -> None:
    from openapi_core import OpenAPI
    from openapi_core.testing.requests import MockRequest
    from openapi_core.testing.responses import MockResponse

    api = OpenAPI.from_dict(interface)
    for path, methods in interface["paths"].items():
        method, about = next(iter(methods.items()))
        content = about.get("requestBody", {}).get("content", {}).get("application/json", {})
        body = httpx.Request("POST", server.url, json=content["example"]).content if content else None
        response = httpx.request(method, server.url + path, content=body)
        assert response.status_code == 200, path
        request = MockRequest(server.url, method, path, data=body, content_type="application/json")
        api.validate_request(request)
        api.validate_response(request, MockResponse(response.content, content_type="application/json"))


def test_a_described_error_is_what_comes(server: RunningServer, interface: Any) -> None:
    path = next(path for path in interface["paths"] if path.endswith(":predict"))
    assert set(interface["paths"][path]["post"]["responses"]) >= {"200", "400", "413", "503"}
    assert list(server.post({}).json()) == interface["components"]["schemas"]["Error"]["required"]


def test_the_answer_has_the_fields_of_the_contract(server: RunningServer, interface: Any) -> None:
    row = server.predict([{"terms": ["drain"]}]).json()["predictions"][0]
    assert set(row) == set(interface["components"]["schemas"]["Prediction"]["properties"])


@pytest.mark.parametrize("path", ["/try", "/docs"])
def test_pages_need_nothing_else_and_run_only_their_own_script(server: RunningServer, path: str) -> None:
    response = server.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    text = response.text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|\burl\(|@import", text)
    policy = response.headers["content-security-policy"]
    for name in ("script", "style"):
        content = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        assert content
        digest = base64.b64encode(hashlib.sha256(content.group(1).encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "innerHTML" not in text
