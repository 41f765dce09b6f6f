"""What /openapi.json says beyond the routes: keys, and every refusal in its form."""

from typing import Any

from fastapi import FastAPI

from service.api.access import SCOPE_OF
from service.api.body import JSON
from service.api.oip_schemas import Refusal
from service.api.schemas import Problem, problems

_PROTOCOL = "/v2"
"""Under it a refusal has the form of the Open Inference Protocol."""


class DocumentedApp(FastAPI):
    """An app whose documents follow the table of scopes."""

    keys_optional: bool = False
    """Whether requests without a key are served, until the first one is made."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; made once."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schemas = components["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of a 422
            schemas.pop(unused, None)
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                self._complete(path, SCOPE_OF[method.upper(), path], operation)
        return document

    def _complete(self, path: str, needed: str, operation: dict[str, Any]) -> None:
        """Add to an operation what the door, the edge and the names of streams refuse."""
        statuses = [404, 422] if "{stream}" in path else []
        if "422" in operation["responses"]:
            statuses.append(422)
        if "requestBody" in operation:
            statuses.append(408)
        if needed != "open":
            statuses += [401, 403, 429, 503]
            operation["security"] = [{"key": []}, *([{}] if self.keys_optional else [])]
            operation["x-scope"] = needed
        for status, said in _refusals(path, statuses).items():
            if status not in operation["responses"] or status == "422":
                operation["responses"][status] = said


def _refusals(path: str, statuses: list[int]) -> dict[str, Any]:
    said = {str(status): one for status, one in problems(*statuses).items()}
    if path.startswith(_PROTOCOL):
        schema = {"$ref": f"#/components/schemas/{Refusal.__name__}"}
        return {
            status: one | {"content": {JSON: {"schema": schema}}} for status, one in said.items()
        }
    return said
